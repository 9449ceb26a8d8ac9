"""One replica: the only place where time and state move. Step loop: plan, validate, kv, cost, wait, advance.

Each step (or leap of pure-decode steps) is one SimPy event. Two rules make the async pipeline:
a plan sees what had arrived when the *previous* step started, and what a step frees is free one plan later. With
`pipeline_depth` 0 a plan sees everything up to its own instant.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Indexable
from dataclasses import dataclass
from math import inf, sqrt
from typing import TYPE_CHECKING, Any

import simpy
from simpy.events import EventPriority
from stepline.traces.errors import InvariantError, PolicyError

from ..cost.work import StepWork
from .capped_decode_set import CappedDecodeSet, windowed_pairs
from .contracts import Plan
from .decode_set import DecodeSet
from .kv_cache import KVCache
from .life_log import LifeLog
from .request_log import FINISHED, REJECTED, TIMED_OUT
from .sequence import DECODING, DONE, PREFILLING, WAITING, Sequence
from .view import ReplicaView

if TYPE_CHECKING:
    from ..cost.specs import EngineProfile
    from ..cost.work import CostModel
    from .contracts import (
        AdmissionPolicy,
        BatchPolicy,
        EvictionPolicy,
        KvCompression,
        PreemptionPolicy,
        WaitingQueue,
    )
    from .kv_cache import Match
    from .step_log import GapLog, StepLog
    from .swap import SwapSpace


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica's server flags allow; names as in vLLM."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    long_prefill_token_threshold: int = 0


AFTER_ALL = EventPriority(2)
"""Behind simpy's URGENT and NORMAL: a step's end sees what arrives at the same instant."""
ROUNDS = range(64)
"""Steps and leaps taken at a time where nothing else happens, so that who watches a run sees it go on."""
DECODE_ALL = Plan([])
"""Everybody decodes: the plan of any policy while nobody waits."""


class StepEnd(simpy.Event):
    """End of a step: like a Timeout, but after everything else that happens at the same instant."""

    def __init__(self, env: simpy.Environment, delay_s: float, callback: Callable[[Any], None]) -> None:
        if not 0.0 <= delay_s < inf:
            raise InvariantError(f"a step ends {delay_s} s from now")
        self.env = env  # set as simpy.Timeout does, which this is but for its priority
        self.callbacks = [callback]
        self._value = None
        self._ok = True
        env.schedule(self, AFTER_ALL, delay_s)


class Replica:
    """An engine on one TP group of GPUs.

    `outputs[i]`: true output tokens of trace row i. `on_done(seq, replica, time_s, output_tokens, status)`: called
    when a request ends; the time is at the client.
    """

    __slots__ = (
        "admission", "arrivals", "coming", "coming_s", "compression", "context", "cost", "decode", "delta_s", "depth",
        "end_s", "env", "event", "fed", "first_s", "gap_log", "grows", "horizon_s", "idle", "inbox", "index", "kv",
        "leaving", "life_log", "limits", "lines", "link", "max_tokens", "mixed", "n_steps", "no_context", "no_growth",
        "now_s", "on_done", "on_end", "output_delay_s", "output_per_seq_s", "outputs", "pads", "paged", "parked", "plan",
        "policy", "preemption", "prefilling", "rows", "running", "spare_blocks", "start_s", "step_log", "steps",
        "swap", "view", "waiting", "whole", "windowed", "work",
    )  # fmt: skip  # 30 attributes is what the interpreter keeps a fast layout for without slots

    def __init__(
        self,
        env: simpy.Environment,
        index: int,
        *,
        limits: Limits,
        engine: EngineProfile,
        cost_model: CostModel,
        policy: BatchPolicy,
        preemption: PreemptionPolicy,
        kv: KVCache,
        windows: tuple[int | None, ...],
        outputs: Indexable[int],
        step_log: StepLog,
        gap_log: GapLog,
        on_done: Callable[[Sequence, int, float, int, int], None],
        admission: AdmissionPolicy | None = None,
        swap: SwapSpace | None = None,
        compression: KvCompression | None = None,
        life_log: LifeLog | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.limits = limits
        self.depth = engine.pipeline_depth
        self.output_delay_s = engine.output_delay_s
        self.output_per_seq_s = engine.output_per_seq_s
        self.cost = cost_model
        self.policy = policy
        self.preemption = preemption
        self.kv = kv
        kv.clock = self
        self.outputs = outputs
        self.step_log = step_log
        self.rows = step_log.rows
        self.gap_log = gap_log
        self.life_log = life_log or LifeLog()
        self.on_done = on_done
        self.admission = admission
        self.swap = swap
        self.link = None if swap is None else swap.link
        self.compression = compression
        self.decode: DecodeSet
        if compression is None or compression.cap_tokens is None:
            self.decode = DecodeSet(kv.block_size, windows)
        else:
            self.decode = CappedDecodeSet(kv.block_size, windows, compression.cap_tokens)
        make_queue = getattr(policy, "make_queue", None)
        self.waiting: WaitingQueue = deque() if make_queue is None else make_queue()
        self.running: dict[Sequence, None] = {}
        self.prefilling: dict[Sequence, None] = {}
        self.leaving: list[tuple[Sequence, int]] = []
        self.parked: dict[Sequence, int] | None = (
            None  # finished ones whose KV stays until `let_go` (prefill pools)
        )
        self.inbox: deque[tuple[float, Sequence]] = deque()
        self.grows = policy.reservation != "contiguous"
        self.paged: bool = policy.reservation == "paged"
        self.pads = policy.pads
        self.whole = policy.whole_prompts
        self.spare_blocks = policy.spare_blocks
        self.now_s = 0.0
        self.steps = 0
        self.max_tokens = min(limits.max_model_len, kv.usable * kv.block_size + 1)
        self.plan = DECODE_ALL
        self.mixed = False
        self.work = StepWork()
        self.no_context = (0,) * len(windows)
        grows_evenly = self.decode.windows == (None,)  # every context by one token a step
        self.lines = getattr(cost_model, "decode_lines", None) if grows_evenly else None
        self.no_growth = () if grows_evenly else (0,) * len(windows)
        self.context = 0
        self.windowed: tuple[int, ...] = ()
        self.start_s = self.end_s = 0.0
        self.first_s = self.delta_s = 0.0
        self.n_steps = 0
        self.horizon_s = inf
        self.fed = False
        self.arrivals: Iterator[Sequence] = iter(())
        self.coming = Sequence(-1, inf, inf, 0, 0)
        self.coming_s = inf
        self.idle = True
        self.event: simpy.Event | None = None
        self.view = ReplicaView(self)
        attach = getattr(self.waiting, "attach", None)
        if attach is not None:
            attach(self.view)
        self.on_end: Callable[[Sequence], None] | None = getattr(self.waiting, "ended", None)

    # -- the outside world ------------------------------------------------------------------------------------------

    def feed(
        self, arrivals: Iterator[Sequence], on_done: Callable[[Sequence, int, float, int, int], None]
    ) -> None:
        """Everybody who will ever arrive, in order of `arrival_s`; instead of `submit`.

        Nothing else may happen in the simulation then: no other replica, and `on_done` sets nothing off.
        """
        self.arrivals, self.on_done = arrivals, on_done
        self.fed = True
        self._draw()
        self._sleep()

    def submit(self, seq: Sequence) -> bool:
        """A request arrives (now). True: call `proceed` once everything of this instant has arrived."""
        if self._is_too_long(seq) or not self._is_welcome(seq):
            self._done(seq, REJECTED, self.env.now, 0)
            return False
        if self.idle:
            self.waiting.append(seq)
            return True
        self.inbox.append((self.env.now, seq))
        return self.n_steps > 1 and not self.plan.deaf

    def _is_too_long(self, seq: Sequence) -> bool:
        """Longer than the model allows, or than the whole cache."""
        return seq.input_tokens + self.outputs[seq.index] > self.max_tokens

    def _is_welcome(self, seq: Sequence) -> bool:
        return self.admission is None or self.admission.admit(self.view, seq, self.env.now)

    def abort(self, seq: Sequence) -> bool:
        """The client has given up on a sequence (now); the engine learns of it as it does of an arrival."""
        if seq.state == DONE:
            return False
        seq.aborted = True
        if self.idle:
            self._abort(seq)
            return False
        self.inbox.append((self.env.now, seq))
        return self.n_steps > 1

    def proceed(self) -> None:
        """Take up what has just arrived: an idle engine starts, a leap is cut at its next border."""
        if not self.idle:
            self._cut_leap()
        elif self.waiting:
            self.idle = False
            self.now_s = self.env.now
            if self._begin():
                self._wait()

    def crash(self, eviction: EvictionPolicy | None) -> list[Sequence]:
        """It fails (now): all KV is lost, and whoever was here, which is what it returns, in order of arrival.

        Steps of a leap that have ended are on record; the step in progress is not. `eviction`: the policy of the cache
        that it will start again with.
        """
        done = self.steps_done()
        if done:
            self.n_steps = done
            self.end_s = self.start_s + done * self.first_s + self.delta_s * (done * (done - 1) // 2)
            self._end_leap()
        here = dict.fromkeys([*self.running, *self.waiting, *[seq for _, seq in self.inbox]])
        for seq in here:
            if seq.aborted and seq.state != DONE:
                self._done(seq, TIMED_OUT, seq.patient_until_s, seq.generated_tokens)
        while self.waiting:
            self.waiting.popleft()
        for members in (self.running, self.prefilling, self.leaving, self.inbox):
            members.clear()
        self.decode.clear()
        self.kv.wipe(eviction)
        self.plan, self.idle, self.event, self.n_steps = DECODE_ALL, True, None, 0
        return sorted([seq for seq in here if seq.state != DONE], key=lambda s: (s.arrival_s, s.index))

    def let_go(self, seq: Sequence) -> bool:
        """The KV of a parked sequence is needed here no longer (now). True: call `proceed`."""
        if self.parked is not None and seq in self.parked:
            self.kv.release(seq, self.parked.pop(seq))
        return self.idle and bool(self.waiting)

    # -- what policies ask ------------------------------------------------------------------------------------------

    def blocks_needed(self, seq: Sequence, tokens: int) -> int:
        """Blocks taken if `tokens` more prompt tokens of `seq` are computed (see `View.blocks_needed`)."""
        size = self.kv.block_size
        if seq.state != WAITING:
            if seq.reserved_blocks:
                return 0
            done = seq.computed_tokens
            return -(-(done + tokens) // size) + -done // size
        if seq.swapped_tokens:
            return self.kv.blocks_for(seq.swapped_tokens + tokens if self.paged else seq.prompt_tokens)
        match = self.kv.match(seq)
        if self.policy.reservation == "paged":
            end = min(match.blocks * size + tokens, seq.prompt_tokens)
        elif self.policy.reservation == "prompt":
            end = seq.prompt_tokens
        else:
            return self._contiguous_blocks(seq) - match.blocks + match.pins
        return -(-end // size) - match.blocks + match.pins

    def _contiguous_blocks(self, seq: Sequence) -> int:
        return min(self.kv.blocks_for(seq.input_tokens + seq.max_output_tokens), self.kv.usable)

    def held_blocks(self, seq: Sequence) -> int:
        """Blocks that come back if `seq` is preempted."""
        if seq.reserved_blocks:
            total = seq.reserved_blocks
        else:
            tokens = self.decode.kv_tokens(seq) if seq.state == DECODING else seq.computed_tokens
            total = self.kv.blocks_for(tokens)
        return total - sum([s.blocks for s in seq.held_segments if s.refs > 1])

    def price(self, prompt_tokens: int, history_tokens: int) -> float:
        """Seconds of a step with all decodes and one chunk (see `View.step_s`)."""
        c, done, n = prompt_tokens, history_tokens, self.decode.n
        contexts = self.decode.context_tokens() if n else self.no_context
        pairs = c * done + c * (c + 1) // 2
        return self.cost.step_s(StepWork(c, int(c > 0), pairs, done + c, n, contexts, n))

    def steps_done(self) -> int:
        """Steps of the leap in progress that have ended by now."""
        if self.mixed or self.n_steps < 2:
            return 0
        return _steps_by(self.first_s, self.delta_s, self.env.now - self.start_s) - 1

    def true_output_tokens(self, seq: Sequence) -> int:
        """The oracle's answer; refused to a policy that does not say it is one."""
        if not getattr(self.policy, "oracle", False):
            self._fail(seq, "its true output length is an oracle: the policy must say `oracle = True`")
        return self.outputs[seq.index]

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _on_step_end(self, event: simpy.Event) -> None:
        if event is self.event:  # else a leap that was cut short
            self._run()

    def _wait(self) -> None:
        """Wait on the clock for the end of the step in progress, unless it comes before anything else happens."""
        if self.end_s < self.env.peek():
            self._run()
        else:
            self.event = StepEnd(self.env, self.end_s - self.env.now, self._on_step_end)

    def _run(self) -> None:
        """End the step in progress and take more, until one outlasts the next event of the simulation."""
        self.horizon_s = self.env.peek()
        for _ in ROUNDS:
            if self.mixed:
                self._end_mixed()
            else:
                self._end_leap()
            if not self._begin():
                return
            if self.end_s >= self.horizon_s:
                break
        self.event = StepEnd(self.env, self.end_s - self.env.now, self._on_step_end)
        self.step_log.settle()

    def _begin(self) -> bool:
        """Plan and start the next step; False if there is nothing to do."""
        if not self.waiting and not self.prefilling and self.decode.n and not self.plan.ask_every_step:
            limit = self._leap_limit(DECODE_ALL)
            if limit:  # nobody waits and KV suffices: all decode, no policy need be asked
                self._start_leap(DECODE_ALL, limit)
                return True
        if self.kv.evictable and self.paged and self.waiting and self.decode.n:
            self.kv.vacate(self.decode.blocks_in(1))
        plan = self.policy.plan(self.view)
        if plan.chunks and not plan.preempt:
            self._start_mixed(plan)
            return True
        if self._is_empty(plan):
            self._release_leaving()
            self._absorb(self.now_s)
            plan = self.policy.plan(self.view)
            if self._is_empty(plan):
                self._go_idle()
                return False
        return self._start(plan)

    def _is_empty(self, plan: Plan) -> bool:
        return not plan.chunks and not plan.preempt and not (plan.decode and self.decode.n)

    def _go_idle(self) -> None:
        if (self.running or self.waiting) and not self.parked:
            self._fail(next(iter(self.running or self.waiting)), "idle while there is work that fits")
        self.plan = DECODE_ALL
        self.idle = True
        self.event = None
        self.n_steps = 0
        self._sleep()

    def _release_leaving(self) -> None:
        for seq, kv_tokens in self.leaving:
            self.kv.release(seq, kv_tokens)
        self.leaving.clear()

    # -- arrivals ---------------------------------------------------------------------------------------------------

    def _absorb(self, until_s: float) -> None:
        """Hear of what has arrived until then."""
        inbox = self.inbox
        while inbox and inbox[0][0] <= until_s:
            seq = inbox.popleft()[1]
            if not seq.aborted or seq.patient_until_s > until_s:
                self.waiting.append(seq)
            else:
                self._abort(seq)
        while self.coming_s <= until_s:
            self.waiting.append(self.coming)
            self._draw()

    def _draw(self) -> None:
        """Look ahead to the next arrival of the feed."""
        for seq in self.arrivals:
            if self._is_too_long(seq):
                self._done(seq, REJECTED, seq.arrival_s, 0)
            else:
                self.coming, self.coming_s = seq, seq.arrival_s
                return
        self.coming_s = inf

    def unheard(self) -> deque[tuple[float, Sequence]]:
        """Who has arrived, with its time, but is not in the queue yet: the next plan will see it, or the one after."""
        while self.coming_s <= self.now_s:
            self.inbox.append((self.coming_s, self.coming))
            self._draw()
        return self.inbox

    def _sleep(self) -> None:
        """Idle until the coming arrival of the feed."""
        if self.coming_s < inf:
            self.event = StepEnd(self.env, self.coming_s - self.env.now, self._wake)

    def _wake(self, _: simpy.Event) -> None:
        self.now_s = self.coming_s
        self._absorb(self.now_s)
        if not self.waiting:
            self._sleep()
            return
        self.idle = False
        if self._begin():
            self._wait()

    # -- start of a step --------------------------------------------------------------------------------------------

    def _start(self, plan: Plan) -> bool:
        for seq in plan.preempt:
            self._preempt(seq)
        if plan.chunks:
            self._start_mixed(plan)
            return True
        if not self.decode.n:
            # everybody has given way: plan anew, with nothing in flight and what that freed
            self._release_leaving()
            self._absorb(self.now_s)
            return self._begin()
        limit = self._leap_limit(plan) or int(self.decode.blocks_in(1) <= self.kv.available)
        if not limit:
            free = self.kv.available
            self._fail(next(iter(self.running)), f"decode step needs more KV blocks than the {free} free")
        self._start_leap(plan, limit)
        return True

    def _leap_limit(self, plan: Plan) -> int:
        """Steps for which a pure-decode plan holds (0: KV runs short, the policy must say who gives way)."""
        decode, kv = self.decode, self.kv
        if (
            plan.ask_every_step
            or (self.inbox and self._heard(plan))
            or (self.waiting and (self.leaving or plan.preempt))
        ):
            limit = 1
        else:
            limit = decode.steps_to_change()
        free = kv.free + kv.evictable - self.spare_blocks
        if decode.n_growing * (limit // kv.block_size + 1) > free:
            return decode.steps_within(free, limit)
        return limit

    def _heard(self, plan: Plan) -> bool:
        """Whether something that the next plan must see is in the inbox."""
        return not plan.deaf or any([seq.aborted for _, seq in self.inbox])

    def _start_leap(self, plan: Plan, limit: int) -> None:
        decode = self.decode
        self.plan = plan
        self.mixed = False
        if self.lines is not None:
            n = decode.n
            self.context = context = decode.offsets + n * (decode.counter + 1)
            ends, pieces = self.lines[n]
            piece = bisect_left(ends, context)
            fixed, slope = pieces[piece]
            if context + n * (limit - 1) > ends[piece]:
                limit = int((ends[piece] - context) // n) + 1
            first, delta = fixed + slope * context, slope * n
        else:
            first, delta, limit = self._leap(limit)
        if self.link is not None and self.link.pending:
            first, limit = self.link.stretch(first), 1
        end = self.now_s + limit * first + delta * (limit * (limit - 1) // 2)
        if self.coming_s < end and not plan.deaf:
            limit = min(limit, self._steps_heard(first, delta))
            end = self.now_s + limit * first + delta * (limit * (limit - 1) // 2)
        self.first_s, self.delta_s, self.n_steps = first, delta, limit
        self._set_end(end)

    def _steps_heard(self, first_s: float, delta_s: float) -> int:
        """Steps until the plan that sees the coming arrival of the feed (depth 1: one step later)."""
        after_s = self.coming_s - self.now_s
        return _steps_by(first_s, delta_s, after_s) + self.depth if after_s > 0.0 else 1

    def _leap(self, limit: int) -> tuple[float, float, int]:
        """The next steps' durations from a cost model without lines."""
        decode = self.decode
        contexts, growth = decode.context_tokens(), decode.growth()
        self.context, self.windowed = contexts[0], (*contexts[1:], *growth) if self.no_growth else ()
        work = StepWork(0, 0, 0, 0, decode.n, contexts, decode.n)
        return self.cost.leap(work, growth, limit) if limit > 1 else (self.cost.step_s(work), 0.0, 1)

    def _set_end(self, end_s: float) -> None:
        """The step or leap begins now and lasts until then."""
        self.start_s = start = self.now_s
        self.end_s = end_s
        if not start < end_s < inf:
            raise InvariantError(
                f"replica {self.index}, step {self.steps}: {self.n_steps} steps of {end_s - start} s"
            )
        if self.leaving:
            self._release_leaving()

    def _start_mixed(self, plan: Plan) -> None:
        decode = self.decode
        n = decode.n if plan.decode else 0
        if n and (need := decode.borders[decode.counter % decode.block_size]):
            if need > self.kv.available:
                self._fail(plan.chunks[0][0], f"decodes need {need} KV blocks, {self.kv.available} are free")
            self.kv.take(need)
        chunks: list[tuple[Sequence, int]] = []
        total = pairs = kv_tokens = 0
        rows = n
        for seq, tokens in plan.chunks:
            c = self._start_chunk(seq, tokens)
            if c:
                chunks.append((seq, c))
                end = seq.computed_tokens + c
                total += c
                pairs += c * (2 * end - c + 1)
                kv_tokens += end
                if end == seq.prompt_tokens:
                    rows += 1
        if self.pads:
            total, pairs, kv_tokens = _padded(chunks)
        if self.compression is not None and self.compression.prefill_window is not None:
            pairs, kv_tokens = _windowed(chunks, self.compression.prefill_window)
        if total + n > self.limits.max_num_batched_tokens:
            self._check_budget(chunks, n)
        plan.chunks = chunks
        self.plan = plan
        self.mixed = True
        contexts = decode.context_tokens() if n else self.no_context
        self.work = work = StepWork(total, len(chunks), pairs // 2, kv_tokens, n, contexts, rows)
        first = self.cost.step_s(work)
        if self.link is not None and self.link.pending:
            first = self.link.stretch(first)
        self.first_s, self.delta_s, self.n_steps = first, 0.0, 1
        self._set_end(self.now_s + first)

    def _check_budget(self, chunks: list[tuple[Sequence, int]], n_decode: int) -> None:
        """Raise unless the real tokens (padding is the policy's own loss) are within the budget, or a prompt is alone."""
        if self.policy.whole_prompts and len(chunks) <= 1:
            return
        tokens, budget = sum([c for _, c in chunks]) + n_decode, self.limits.max_num_batched_tokens
        if tokens > budget:
            self._fail(chunks[-1][0], f"{tokens} tokens exceed the budget of {budget}")

    def _start_chunk(self, seq: Sequence, tokens: int) -> int:
        """Admit if waiting, take KV, and return the tokens really computed (0: with less cached it no longer fits)."""
        if tokens < 1:
            self._fail(seq, f"chunk of {tokens} tokens")
        kv = self.kv
        if seq.state == WAITING:
            certain = self.paged and seq.hash_ids is None and not seq.swapped_tokens
            if not certain and not self._fits_still(seq, tokens):
                return 0
            self._admit(seq)
        elif seq.state != PREFILLING:
            self._fail(seq, "has no prompt left to compute")
        done = seq.computed_tokens
        if tokens > seq.prompt_tokens - done:
            tokens = seq.prompt_tokens - done
        if not seq.reserved_blocks:
            size = kv.block_size
            need = -(-(done + tokens) // size) + -done // size
            if need > kv.free + kv.evictable:
                self._fail(seq, f"chunk needs {need} KV blocks, {kv.available} are free")
            kv.take(need)
        if seq.hash_ids is not None:
            kv.commit(seq, done + tokens)
        return tokens

    def _fits_still(self, seq: Sequence, tokens: int) -> bool:
        """Whether admission finds what it was planned on.

        What this step has taken before may have evicted some of the prefix that the plan counted on: a prompt that may
        be split joins with what is left of it, as in vLLM, before it loses the rest.
        """
        planned, available = seq.match, self.kv.available
        need = self.blocks_needed(seq, tokens)
        if planned is not seq.match and (need > available or (self.whole and _is_less(seq.match, planned))):
            return False
        if need > available:
            self._fail(seq, f"admission needs {need} KV blocks, {available} are free")
        return True

    def _admit(self, seq: Sequence) -> None:
        if len(self.running) + len(self.leaving) >= self.limits.max_num_seqs:
            self._fail(seq, f"no seat left: max_num_seqs is {self.limits.max_num_seqs}")
        if self.waiting[0] is seq:
            self.waiting.popleft()
        else:
            self.waiting.remove(seq)
        if seq.swapped_tokens:
            cached, held = self._swap_in(seq)
        else:
            cached = self.kv.admit(seq)
            held = cached // self.kv.block_size
        if not self.paged:
            contiguous = self.policy.reservation == "contiguous"
            whole = self._contiguous_blocks(seq) if contiguous else self.kv.blocks_for(seq.prompt_tokens)
            seq.reserved_blocks = whole
            self.kv.take(whole - held)
        seq.computed_tokens = cached
        seq.state = PREFILLING
        self.running[seq] = None
        self.prefilling[seq] = None
        if seq.scheduled_s is None:
            seq.scheduled_s = self.now_s
            seq.cached_tokens = cached
        else:
            self.life_log.resumed(seq, self.now_s)

    # -- end of a step ----------------------------------------------------------------------------------------------

    def _end_leap(self) -> None:
        decode, kv, n_steps, start = self.decode, self.kv, self.n_steps, self.start_s
        self.now_s = now = self.end_s
        n, live = decode.n, decode.n_live
        if decode.emit_s != start or decode.late:
            live = self._log_gaps()
        opened = decode.blocks_in(n_steps)
        if opened:
            kv.take(opened)
        self.steps += n_steps
        self.rows += (
            self.index, start, n_steps, self.first_s, self.delta_s, n, live, len(self.waiting),
            kv.free + kv.evictable, 0, 0, 0, 0, n, self.context,
        )  # fmt: skip
        if self.windowed:
            self.rows += self.windowed
        if decode.advance(n_steps, now):
            self._finish()
        if self.coming_s <= now or self.inbox:
            last = n_steps - 1  # depth 1: the plan now due was made when the last step began
            seen_s = start + last * self.first_s + self.delta_s * (last * (last - 1) // 2)
            self._absorb(seen_s if self.depth else now)

    def _end_mixed(self) -> None:
        decode, kv, start = self.decode, self.kv, self.start_s
        self.now_s = now = self.end_s
        tokens, seqs, pairs, kv_tokens, n, contexts, logits = self.work
        live = 0
        if n:
            live = decode.n_live
            if decode.emit_s != start or decode.late:
                live = self._log_gaps()
        self.steps += 1
        self.rows += (
            self.index, start, 1, self.first_s, 0.0, n, live, len(self.waiting), kv.free + kv.evictable,
            tokens, seqs, pairs, kv_tokens, logits, contexts[0],
        )  # fmt: skip
        if self.no_growth:
            self.rows += (*contexts[1:], *self.no_growth)
        if n and decode.advance(1, now):
            self._finish()
        if self.life_log.with_chunks:
            self.life_log.chunks(self.plan.chunks, self.index, start, self.first_s)
        for seq, tokens in self.plan.chunks:
            seq.computed_tokens += tokens
            if seq.computed_tokens == seq.prompt_tokens:
                self._emit_first(seq)
        if self.pads and decode.n_live == 0 and not self.prefilling:
            self._end_batch()
        if self.coming_s <= now or self.inbox:
            self._absorb(start if self.depth else now)

    def _log_gaps(self) -> int:
        """Log the gaps of a step some of whose sequences emitted last at another time than its start.

        A leap's later gaps are its step durations for everybody, so they are logged with the first ones here.
        Returns minus the sequences that emit: their gaps need not be logged again.
        """
        decode, log = self.decode, self.gap_log
        end_s = self.start_s + self.first_s
        main = decode.n_live
        for time_s, count in decode.late:
            log.add(end_s - time_s, 0.0, 1, count, self.start_s)
            main -= count
        decode.late.clear()
        if main:
            log.add(end_s - decode.emit_s, 0.0, 1, main, self.start_s)
        if self.n_steps > 1:
            log.add(self.first_s + self.delta_s, self.delta_s, self.n_steps - 1, decode.n_live, self.start_s)
        return -decode.n_live

    def _emit_first(self, seq: Sequence) -> None:
        """The prompt is complete: its last chunk yields a token (the first, or the next after a recompute)."""
        now = self.now_s
        del self.prefilling[seq]
        if self.grows:
            seq.reserved_blocks = 0
        if seq.first_token_s is None:
            # the newest sequence is the last of the step on the output path
            seq.first_token_s = now + self.output_delay_s + self.output_per_seq_s * self.work.logits_rows
        else:
            self.gap_log.add(now - seq.last_token_s, 0.0, 1, 1, self.start_s)
        seq.last_token_s = now
        seq.generated_tokens += 1
        left = self.outputs[seq.index] - seq.generated_tokens
        kv_tokens = seq.prompt_tokens if self.compression is None else self._compressed(seq, self.compression)
        if left:
            self.decode.join(seq, kv_tokens, left, grows=self.grows)
        else:
            self._depart(seq, kv_tokens)

    def _compressed(self, seq: Sequence, compression: KvCompression) -> int:
        """Drop what is not kept of a computed prompt; returns the tokens held."""
        kept = compression.kept_tokens(seq.prompt_tokens)
        if not 0 < kept <= seq.prompt_tokens:
            self._fail(seq, f"{type(compression).__name__} keeps {kept} of {seq.prompt_tokens} tokens")
        if self.grows:
            self.kv.give_back(self.kv.blocks_for(seq.prompt_tokens) - self.kv.blocks_for(kept))
        seq.computed_tokens = kept
        return kept

    def _finish(self) -> None:
        """Those that have emitted their last token leave."""
        finished = self.decode.pop_finished(grows=self.grows, pad=self.pads)
        for seq, kv_tokens in finished:
            self._depart(seq, kv_tokens)
        if self.pads and self.decode.n_live == 0 and not self.prefilling:
            self._end_batch()

    def _depart(self, seq: Sequence, kv_tokens: int) -> None:
        """A finished sequence leaves its seat: at once, one plan later, or when its static batch ends."""
        if self.pads:
            seq.computed_tokens = kv_tokens
        else:
            del self.running[seq]
            if self.parked is not None:
                self.parked[seq] = kv_tokens
            elif self.depth:
                self.leaving.append((seq, kv_tokens))
            else:
                self.kv.release(seq, kv_tokens)
        end_s = self.now_s + self.output_delay_s
        if seq.first_token_s > end_s:  # type: ignore[operator]  # it has emitted
            end_s = seq.first_token_s  # type: ignore[assignment]
        self._done(seq, FINISHED, end_s, self.outputs[seq.index])

    def _end_batch(self) -> None:
        for seq in self.running:
            self.kv.release(seq, seq.computed_tokens)
        self.running.clear()
        self.decode.clear()

    def _done(self, seq: Sequence, status: int, time_s: float, tokens: int) -> None:
        seq.state = DONE
        if self.on_end is not None:
            seq.generated_tokens = tokens
            self.on_end(seq)
        self.on_done(seq, self.index, time_s, tokens, status)
        if not self.fed:
            self.horizon_s = self.env.peek()  # who hears of the end may have set something off

    # -- leaving early ----------------------------------------------------------------------------------------------

    def _preempt(self, seq: Sequence) -> None:
        if seq not in self.running or seq.state not in (PREFILLING, DECODING) or self.pads:
            self._fail(seq, "cannot be preempted: it is not running")
        kv_tokens = self._drop(seq)
        swapped = self.swap is not None and self.swap.put(self.kv.blocks_for(kv_tokens))
        seq.swapped_tokens = kv_tokens if swapped else 0
        if swapped and seq.hash_ids is None:
            seq.hash_ids = ()  # policies look up what is cached of it from now on
        self.kv.release(seq, kv_tokens, keep=not swapped)
        seq.prompt_tokens = seq.input_tokens + seq.generated_tokens
        seq.computed_tokens = 0
        seq.preemptions += 1
        self.life_log.preempted(seq, self.index, self.now_s)
        seq.state = WAITING
        self.waiting.appendleft(seq)

    def _swap_in(self, seq: Sequence) -> tuple[int, int]:
        """Bring a swapped sequence's KV back; returns its tokens and blocks."""
        tokens, blocks = seq.swapped_tokens, self.kv.blocks_for(seq.swapped_tokens)
        self.kv.readmit(seq, blocks)
        if self.swap is not None:
            self.swap.take(blocks)
        seq.swapped_tokens = 0
        return tokens, blocks

    def _drop(self, seq: Sequence) -> int:
        """Take a sequence off prefill or decode; return its KV tokens."""
        del self.running[seq]
        if seq.state == PREFILLING:
            del self.prefilling[seq]
            return seq.computed_tokens
        if seq.decode_offset + self.decode.counter != seq.computed_tokens:
            seq.last_token_s = self.decode.emit_s
        seq.generated_tokens = self.decode.generated(seq, self.outputs[seq.index])
        return self.decode.leave(seq, grows=self.grows)

    def _abort(self, seq: Sequence) -> None:
        if seq.state == DONE:
            return
        if seq.state == WAITING:
            if seq in self.waiting:
                self.waiting.remove(seq)
            if self.swap is not None and seq.swapped_tokens:
                self.swap.drop(self.kv.blocks_for(seq.swapped_tokens))
        elif self.pads and seq.state == DECODING:
            seq.generated_tokens = self.decode.generated(seq, self.outputs[seq.index])
            seq.computed_tokens = self.decode.leave(seq, grows=self.grows, pad=True)
            seq.epoch += 1
            if self.decode.n_live == 0 and not self.prefilling:
                self._end_batch()
        else:
            self.kv.release(seq, self._drop(seq))
        self._done(seq, TIMED_OUT, seq.patient_until_s, seq.generated_tokens)

    def _fail(self, seq: Sequence, what: str) -> None:
        name = type(self.policy).__name__
        raise PolicyError(f"{name}: replica {self.index}, step {self.steps}, sequence {seq.index}: {what}")

    # -- leaps ------------------------------------------------------------------------------------------------------

    def _cut_leap(self) -> None:
        """End the leap at the border of the step in progress (depth 1: one step later, it is planned already)."""
        first, delta = self.first_s, self.delta_s
        n = _steps_by(first, delta, self.env.now - self.start_s) + self.depth
        if n < self.n_steps:
            self.n_steps = n
            self.end_s = self.start_s + n * first + delta * (n * (n - 1) // 2)
            self._wait()


def _steps_by(first_s: float, delta_s: float, elapsed_s: float) -> int:
    """The least n >= 1 such that n steps of a progression last at least `elapsed_s`."""
    if delta_s > 0.0:
        b = first_s - delta_s / 2
        n = int((sqrt(b * b + 2 * delta_s * elapsed_s) - b) / delta_s) + 1
    else:
        n = int(elapsed_s / first_s) + 1
    while n > 1 and (n - 1) * first_s + delta_s * ((n - 1) * (n - 2) // 2) >= elapsed_s:
        n -= 1
    while n * first_s + delta_s * (n * (n - 1) // 2) < elapsed_s:
        n += 1
    return n


def _is_less(match: Match | None, planned: Match | None) -> bool:
    """Whether a hit has become smaller."""
    return match is not None and planned is not None and match.blocks < planned.blocks


def _windowed(chunks: list[tuple[Sequence, int]], window: int) -> tuple[int, int]:
    """Twice the query-key pairs, and the keys read, of chunks whose tokens see at most `window`."""
    pairs = sum([windowed_pairs(seq.computed_tokens, c, window) for seq, c in chunks])
    return 2 * pairs, sum([min(seq.computed_tokens, window) + c for seq, c in chunks])


def _padded(chunks: list[tuple[Sequence, int]]) -> tuple[int, int, int]:
    """Tokens, twice the pairs and keys of whole prompts padded to the longest of the step."""
    widest = max([c for _, c in chunks], default=0)
    ends = [seq.computed_tokens + widest for seq, _ in chunks]
    return widest * len(chunks), sum([widest * (2 * end - widest + 1) for end in ends]), sum(ends)
