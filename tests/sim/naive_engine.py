"""A deliberately naive vLLM V1: one object a KV block, one loop over sequences and tokens, no aggregates, no leaps.

Written from vLLM V1's own rules (`v1/core/sched/scheduler.py`, `v1/core/kv_cache_manager.py`, `v1/core/block_pool.py`),
not from ours, so that the engine has something to be compared with that shares none of its code. Its only input is a
list of `Ask`; its only arithmetic on time is the step's price.

Where our engine knowingly departs from vLLM, a field of `Rules` says so; `Rules()` is what the engine does and
`VLLM` is vLLM. Tests compare with the first exactly, and with the second wherever the difference cannot show.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf, nan

from stepline.sim.cost.work import StepWork


@dataclass(frozen=True)
class Rules:
    """Departures of the engine from vLLM V1.

    plans_first  admissions are planned on the cache as the step's decodes leave it, before any of its prompts is
                 begun or continued. vLLM looks each prompt up when its turn comes: then budget and blocks that a hit on
                 blocks of the same step saves are free for others at once (ours: in the next step), and a prompt some
                 of whose cached blocks the same step's prompts have just taken computes them in its first chunk (ours:
                 the first chunk is no longer than it was planned)
    one_copy     a block whose content somebody else has put into the cache before is not findable itself. vLLM keeps
                 both, so that the content outlives the eviction of one. Follows from it: a sequence with such a block
                 finds none of its generated tokens after a preemption; what it cannot be found by is reused before the
                 rest of it; and generated blocks that its hit leaves out (a token is left to compute) are free at once
    """

    plans_first: bool = True
    one_copy: bool = True


VLLM = Rules(plans_first=False, one_copy=False)


@dataclass
class Ask:
    """A request: `contents[b]` names what the prompt's full block b holds, prefix included (None: private)."""

    index: int
    arrival_s: float
    input_tokens: int
    output_tokens: int
    contents: list = field(default_factory=list)
    # its life
    computed: int = 0
    emitted: int = 0
    decoding: bool = False
    blocks: list = field(default_factory=list)
    token_s: list = field(default_factory=list)
    scheduled_s: float = nan
    finish_s: float = nan
    cached: int | None = None
    preemptions: int = 0
    status: int | None = None

    @property
    def tokens(self) -> int:
        return self.input_tokens + self.emitted

    def content(self, b: int):
        return self.contents[b] if b < len(self.contents) else ("private", self.index, b)


@dataclass(eq=False)
class Block:
    refs: int = 0
    content: object = None


class Pool:
    """vLLM's BlockPool: a free queue in order of release, blocks findable by content until they are reused."""

    def __init__(self, n_blocks: int, *, caching: bool) -> None:
        self.free = [Block() for _ in range(n_blocks - 1)]  # block 0 is the null block
        self.usable = n_blocks - 1
        self.caching = caching
        self.by_content: dict[object, list[Block]] = {}
        self.peak = 0

    def find(self, content) -> Block | None:
        copies = self.by_content.get(content)
        return copies[0] if copies else None

    def touch(self, block: Block) -> None:
        if block.refs == 0:
            self.free.remove(block)
        block.refs += 1

    def take(self) -> Block:
        block = self.free.pop(0)
        self.forget(block)
        block.refs = 1
        return block

    def note(self, block: Block, content, *, one_copy: bool) -> None:
        if self.caching and block.content is None and not (one_copy and content in self.by_content):
            block.content = content
            self.by_content.setdefault(content, []).append(block)

    def forget(self, block: Block) -> None:
        if block.content is not None:
            copies = self.by_content[block.content]
            copies.remove(block)
            if not copies:
                del self.by_content[block.content]
            block.content = None

    def release(self, blocks: list[Block], *, nameless_first: bool) -> None:
        ordered = list(reversed(blocks))
        if nameless_first:
            ordered.sort(key=lambda block: block.content is not None)
        for block in ordered:
            block.refs -= 1
            if block.refs == 0:
                self.free.append(block)

    @property
    def held(self) -> int:
        return self.usable - len(self.free)


@dataclass
class Step:
    start_s: float
    duration_s: float
    work: StepWork
    held: int  # KV blocks when it ends, before anybody leaves
    chunks: list
    windows: tuple = ()


class NaiveEngine:
    """One replica. `run()` leaves the life of each `Ask` on it and the steps in `steps`."""

    def __init__(
        self,
        asks: list[Ask],
        price: Callable[[StepWork], float],
        *,
        n_blocks: int,
        block_size: int,
        max_num_seqs: int,
        budget: int,
        threshold: int = 0,
        caching: bool = True,
        depth: int = 0,
        timeout_s: float = inf,
        max_model_len: int = 10**9,
        windows: tuple[int | None, ...] = (None,),
        rules: Rules = Rules(),
    ) -> None:
        self.asks = sorted(asks, key=lambda a: a.arrival_s)
        self.price = price
        self.size, self.seats, self.budget, self.threshold = block_size, max_num_seqs, budget, threshold
        self.depth, self.timeout_s, self.windows, self.rules = depth, timeout_s, windows, rules
        self.pool = Pool(n_blocks, caching=caching)
        self.max_tokens = min(max_model_len, self.pool.usable * block_size + 1)
        self.waiting: list[Ask] = []
        self.running: list[Ask] = []
        self.leaving: list[Ask] = []
        self.steps: list[Step] = []
        self.preempted: list[list] = []
        self.queried = self.hits = 0

    # -- time -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        # (time, order of the trace's clock events, kind, ask): an arrival at an instant precedes a deadline at it
        news = []
        for k, a in enumerate(self.asks):
            news.append((a.arrival_s, 0, k, a))
            if self.timeout_s < inf:
                news.append((a.arrival_s + self.timeout_s, 1, k, a))
        news.sort(key=lambda e: e[:3])
        now, seen = 0.0, -inf
        while True:
            self.hear(news, seen if self.depth else now)
            chunks = self.schedule(now)
            if not chunks:
                self.let_go()
                self.hear(news, now)
                chunks = self.schedule(now)
            self.let_go()
            if chunks:
                seen = now
                now = self.execute(chunks, now)
                continue
            if self.running or self.waiting:
                raise AssertionError("stuck")
            news = [e for e in news if not (e[1] == 1 and e[3].status is not None)]
            if not news:
                return
            now = max(now, news[0][0])
            seen = now  # an idle engine looks at once

    def hear(self, news: list, until_s: float) -> None:
        while news and news[0][0] <= until_s:
            at, kind, _, ask = news.pop(0)
            if kind == 0:
                if ask.input_tokens + ask.output_tokens > self.max_tokens:
                    ask.status, ask.finish_s = 1, at
                else:
                    self.waiting.append(ask)
            elif ask.status is None:
                ask.status, ask.finish_s = 2, at
                self.give_back(ask)
                (self.running if ask in self.running else self.waiting).remove(ask)

    def let_go(self) -> None:
        for ask in self.leaving:
            self.give_back(ask)
            self.running.remove(ask)
        self.leaving = []

    def give_back(self, ask: Ask) -> None:
        self.pool.release(ask.blocks, nameless_first=self.rules.one_copy)
        ask.blocks = []

    # -- the scheduler ----------------------------------------------------------------------------------------------

    def schedule(self, now: float) -> list[tuple[Ask, int]]:
        budget = self.budget
        chosen: list[tuple[Ask, int]] = []
        before = self.cached_now()
        gave_way = False
        i = 0
        while i < len(self.running) and budget > 0:
            ask = self.running[i]
            if (
                ask.status is not None
            ):  # has its last token on the way: keeps seat and blocks, computes nothing
                i += 1
                continue
            n = ask.tokens - ask.computed
            if 0 < self.threshold < n:
                n = self.threshold
            n = min(n, budget)
            placed = False
            while True:
                if self.allocate(ask, n, []):
                    placed = True
                    break
                victim = next(a for a in reversed(self.running) if a.status is None)
                self.preempt(victim, now)
                gave_way = True
                if victim is ask:
                    break
            if not placed:
                break
            chosen.append((ask, n))
            budget -= n
            i += 1
        if gave_way:
            return chosen
        if self.rules.plans_first:
            return chosen + self.admit_as_planned(self.planned(budget, before), now)
        while self.waiting and budget > 0 and len(self.running) < self.seats:
            ask = self.waiting[0]
            found = self.prefix(ask)
            n = self.first_chunk(ask, len(found), budget)
            if not self.allocate(ask, n, found):
                break
            self.admit(ask, found, now)
            chosen.append((ask, n))
            budget -= n
        return chosen

    def first_chunk(self, ask: Ask, hit: int, budget: int) -> int:
        n = ask.tokens - hit * self.size
        return min(self.threshold if 0 < self.threshold < n else n, budget)

    def cached_now(self) -> dict[int, tuple[int, int]]:
        """Blocks found of each prompt that waits once the decodes have taken theirs, and how many nobody holds."""
        taken = sum(self.need(a, 1, []) for a in self.running if a.decoding and a.status is None)
        gone = self.pool.free[:taken]
        out = {}
        for ask in self.waiting:
            found = list(takewhile(lambda block: block not in gone, self.prefix(ask)))
            out[ask.index] = (len(found), sum(block.refs == 0 for block in found))
        return out

    def planned(self, budget: int, before: dict) -> list[tuple[Ask, int]]:
        """Who fits, with the hits (in blocks, and those of them that nobody holds) of the step's beginning."""
        plan = []
        free = len(self.pool.free)
        for ask in self.waiting[: self.seats - len(self.running)]:
            hit, idle = before[ask.index]
            n = self.first_chunk(ask, hit, budget)
            need = -(-(hit * self.size + n) // self.size) - hit + idle
            if n <= 0 or need > free:
                break
            plan.append((ask, n))
            budget -= n
            free -= need
        return plan

    def admit_as_planned(self, plan: list[tuple[Ask, int]], now: float) -> list[tuple[Ask, int]]:
        chosen = []
        for ask, n in plan:
            found = self.prefix(ask)
            n = min(n, ask.tokens - len(found) * self.size)
            if self.allocate(ask, n, found):
                self.admit(ask, found, now)
                chosen.append((ask, n))
        return chosen

    def admit(self, ask: Ask, found: list[Block], now: float) -> None:
        self.waiting.remove(ask)
        self.running.append(ask)
        self.queried += ask.tokens
        self.hits += len(found) * self.size
        if ask.cached is None:
            ask.cached = len(found) * self.size
            ask.scheduled_s = now
        else:
            next(p for p in reversed(self.preempted) if p[0] == ask.index)[2] = now

    def prefix(self, ask: Ask) -> list[Block]:
        found: list[Block] = []
        if self.pool.caching:
            for b in range((ask.tokens - 1) // self.size):
                block = self.pool.find(ask.content(b))
                if block is None:
                    break
                found.append(block)
        return found

    def need(self, ask: Ask, n: int, found: list[Block]) -> int:
        """Blocks out of the free queue, those of a hit that nobody holds included."""
        computed = ask.computed + len(found) * self.size
        new = -(-(computed + n) // self.size) - len(ask.blocks) - len(found)
        return new + sum(block.refs == 0 for block in found)

    def allocate(self, ask: Ask, n: int, found: list[Block]) -> bool:
        if self.need(ask, n, found) > len(self.pool.free):
            return False
        for block in found:
            self.pool.touch(block)
        if found and self.rules.one_copy:
            self.drop_unused(ask, len(found))
        ask.blocks += found
        ask.computed = computed = ask.computed + len(found) * self.size
        while len(ask.blocks) * self.size < computed + n:
            ask.blocks.append(self.pool.take())
        for b in range(computed // self.size, (computed + n) // self.size):
            self.pool.note(ask.blocks[b], ask.content(b), one_copy=self.rules.one_copy)
        self.pool.peak = max(self.pool.peak, self.pool.held)
        return True

    def drop_unused(self, ask: Ask, hit: int) -> None:
        """Blocks after the hit that belong to the same id, or are generated too, are computed anew: free at once."""
        *owner, _ = ask.content(hit - 1)
        while (block := self.pool.find((*owner, hit))) is not None and block.refs == 0:
            self.pool.forget(block)
            self.pool.free.remove(block)
            self.pool.free.insert(0, block)
            hit += 1

    def preempt(self, ask: Ask, now: float) -> None:
        self.running.remove(ask)
        if self.rules.one_copy:
            prompt = ask.blocks[: len(ask.contents)]
            if any(block.content is None for block in prompt):
                for block in ask.blocks[len(ask.contents) :]:
                    self.pool.forget(block)
        self.give_back(ask)
        ask.computed = 0
        ask.decoding = False
        ask.preemptions += 1
        self.preempted.append([ask.index, now, nan])
        self.waiting.insert(0, ask)

    # -- a step -----------------------------------------------------------------------------------------------------

    def execute(self, chunks: list[tuple[Ask, int]], now: float) -> float:
        work = self.work(chunks)
        end = now + self.price(work)
        prompts = [(a.index, n) for a, n in chunks if not a.decoding]
        self.steps.append(Step(now, end - now, work, self.pool.held, prompts))
        for ask, n in chunks:
            ask.computed += n
            if ask.computed < ask.tokens:
                continue
            ask.token_s.append(end)
            ask.emitted += 1
            ask.decoding = True
            if ask.emitted == ask.output_tokens:
                ask.status = 0
                ask.finish_s = end
                if end > ask.arrival_s + self.timeout_s:
                    ask.status, ask.finish_s = 2, ask.arrival_s + self.timeout_s
                self.leaving.append(ask)
        if not self.depth:
            self.let_go()
        return end

    def work(self, chunks: list[tuple[Ask, int]]) -> StepWork:
        prompt_tokens = seqs = pairs = kv = decodes = rows = 0
        contexts = [0] * len(self.windows)
        for ask, n in chunks:
            if ask.decoding:
                decodes += 1
                rows += 1
                for w, window in enumerate(self.windows):
                    contexts[w] += min(ask.tokens, window or ask.tokens)
                continue
            prompt_tokens += n
            seqs += 1
            kv += ask.computed + n
            pairs += sum(position + 1 for position in range(ask.computed, ask.computed + n))
            rows += ask.computed + n == ask.tokens
        return StepWork(prompt_tokens, seqs, pairs, kv, decodes, tuple(contexts), rows)
