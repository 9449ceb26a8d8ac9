"""One replica: the only place where time and state move. Step loop: plan, validate, kv, cost, wait, advance.

Each step (or leap of pure-decode steps) is one SimPy event. Two rules make the async pipeline:
a plan sees what had arrived when the *previous* step started, and what a step frees is free one plan later. With
`pipeline_depth` 0 a plan sees everything up to its own instant.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterator
from collections.abc import Sequence as Indexable
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

from stepline.traces.errors import InvariantError, PolicyError

from ..cost.work import StepWork
from .capped_decode_set import windowed_pairs
from .clock import Environment, Event, StepEnd
from .contracts import Plan
from .lane import DECODE_ALL, UNDERWAY, glide, new_tuple, steps_by
from .request_log import REJECTED, TIMED_OUT
from .seats import Limits, OnDone, Seats
from .sequence import DONE, Sequence
from .step_log import pack_row
from .view import ReplicaView

if TYPE_CHECKING:
    from ..cost.specs import EngineProfile
    from ..cost.work import CostModel
    from .acceptance import AcceptanceTape
    from .adapters import AdapterSlots
    from .contracts import (
        AdmissionPolicy,
        BatchPolicy,
        EvictionPolicy,
        KvCompression,
        PreemptionPolicy,
        WaitingQueue,
    )
    from .decode_set import DecodeSet
    from .kv_cache import KVCache
    from .life_log import LifeLog
    from .step_log import GapLog, StepLog
    from .swap import KvStore, StepLink

LANE_IS_OPEN = True
"""Whether replicas that can use the fast lane do; a test closes it."""
AT_A_TIME = 1 << 14
"""Bytes of the step log written at a time where nothing else happens, so that who watches a run sees it go on."""


class Replica:
    """An engine on one TP group of GPUs: it plans steps, prices them, waits for them, and says the time to its seats.

    `outputs[i]`: true output tokens of trace row i. `on_done`: see `seats.OnDone`.
    """

    __slots__ = (
        "adapters", "admission", "arrivals", "ask", "coming", "coming_s", "compression", "context", "cost", "decode", "delta_s",
        "depth", "end_s", "env", "event", "fed", "first_s", "gap_log", "generated_s", "glides", "horizon_s", "idle", "inbox",
        "index", "kv", "limits", "lines", "link", "max_tokens", "mixed", "mixes", "n_steps", "no_growth", "now_s", "on_done", "paged",
        "plan", "policy", "preemption", "prefilling", "rows", "running", "seats", "spare_blocks", "start_s",
        "step_log", "steps", "view", "waiting", "windowed", "work",
    )  # fmt: skip  # 30 attributes is what the interpreter keeps a fast layout for without slots

    def __init__(
        self,
        env: Environment,
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
        on_done: OnDone,
        admission: AdmissionPolicy | None = None,
        swap: KvStore | None = None,
        compression: KvCompression | None = None,
        life_log: LifeLog | None = None,
        tape: AcceptanceTape | None = None,
        adapters: AdapterSlots | None = None,
    ) -> None:
        self.env = env
        self.index = index
        self.limits = limits
        self.depth = engine.pipeline_depth
        self.cost = cost_model
        self.policy = policy
        self.ask = policy.plan
        self.preemption = preemption
        self.kv: KVCache = kv
        kv.clock = self
        self.step_log = step_log
        self.rows = step_log.rows
        self.gap_log = gap_log
        self.on_done = on_done
        self.admission = admission
        self.link: StepLink | None = None if swap is None else swap.link
        self.adapters = adapters
        self.compression = compression
        self.seats: Seats = Seats(
            index, limits=limits, engine=engine, policy=policy, kv=kv, windows=windows, outputs=outputs,
            gap_log=gap_log, on_done=self._on_done, fail=self._fail, swap=swap, compression=compression,
            life_log=life_log, tape=tape, adapters=adapters,
        )  # fmt: skip
        seats = self.seats
        self.decode: DecodeSet = seats.decode
        self.waiting: WaitingQueue = seats.waiting
        self.running: dict[Sequence, None] = seats.running
        self.prefilling: dict[Sequence, None] = seats.prefilling
        self.inbox: deque[tuple[float, Sequence]] = deque()
        self.paged = seats.paged
        self.spare_blocks = policy.spare_blocks
        self.now_s = 0.0
        self.steps = 0
        self.max_tokens = min(limits.max_model_len, kv.usable * kv.block_size + 1)
        self.plan = DECODE_ALL
        self.mixed = False
        self.work = StepWork()
        grows_evenly = self.decode.grows_evenly
        self.lines: Any = getattr(cost_model, "decode_lines", None) if grows_evenly else None
        self.generated_s: float = getattr(cost_model, "generated_s", 0.0)
        self.glides = (
            LANE_IS_OPEN and self.lines is not None and self.decode.plain and swap is None and not seats.pads
        )
        self.mixes = self.glides and compression is None
        self.no_growth = () if grows_evenly else (0,) * len(self.decode.growth())
        self.context = 0.0
        self.windowed: tuple[float, ...] = ()
        self.start_s = self.end_s = 0.0
        self.first_s = self.delta_s = 0.0
        self.n_steps = 0
        self.horizon_s = inf
        self.fed = False
        self.arrivals: Iterator[Sequence] = iter(())
        self.coming = Sequence(-1, inf, inf, 0, 0)
        self.coming_s = inf
        self.idle = True
        self.event: Event | None = None
        self.view = ReplicaView(self)
        attach = getattr(self.waiting, "attach", None)
        if attach is not None:
            attach(self.view)

    # -- the outside world ------------------------------------------------------------------------------------------

    def feed(self, arrivals: Iterator[Sequence], on_done: OnDone) -> None:
        """Everybody who will ever arrive, in order of `arrival_s`; instead of `submit`.

        Nothing else may happen in the simulation then: no other replica, and `on_done` sets nothing off.
        """
        self.arrivals, self.seats.on_done = arrivals, on_done
        self.fed = True
        self._draw()
        self._sleep()

    def submit(self, seq: Sequence) -> bool:
        """A request arrives (now). True: call `proceed` once everything of this instant has arrived."""
        if self._is_too_long(seq) or not self._is_welcome(seq):
            self.seats.done(seq, REJECTED, self.env.now, 0)
            return False
        if self.idle:
            self.waiting.append(seq)
            return True
        self.inbox.append((self.env.now, seq))
        return self.n_steps > 1 and not self.plan.deaf

    def _is_too_long(self, seq: Sequence) -> bool:
        """Longer than the model allows, or than the whole cache."""
        return seq.input_tokens + self.seats.outputs[seq.index] > self.max_tokens

    def _is_welcome(self, seq: Sequence) -> bool:
        return self.admission is None or self.admission.admit(self.view, seq, self.env.now)

    def abort(self, seq: Sequence) -> bool:
        """The client has given up on a sequence (now); the engine learns of it as it does of an arrival."""
        if seq.state == DONE:
            return False
        seq.aborted = True
        if self.idle:
            self.seats.abort(seq)
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
            self._set_off()

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
        here = dict.fromkeys([*self.running, *self.waiting, *[seq for _, seq in self.unheard()]])
        for seq in here:
            if seq.aborted and seq.state != DONE:
                self.seats.done(seq, TIMED_OUT, seq.patient_until_s, seq.generated_tokens)
        self.seats.clear()
        self.inbox.clear()
        self.kv.wipe(eviction)
        self.plan, self.idle, self.event, self.n_steps = DECODE_ALL, True, None, 0
        return sorted([seq for seq in here if seq.state != DONE], key=lambda s: (s.arrival_s, s.index))

    def let_go(self, seq: Sequence) -> bool:
        """The KV of a parked sequence is needed here no longer (now). True: call `proceed`."""
        parked = self.seats.parked
        if parked is not None and seq in parked:
            self.kv.release(seq, parked.pop(seq))
        return self.idle and bool(self.waiting)

    def _on_done(self, seq: Sequence, index: int, time_s: float, tokens: int, status: int) -> None:
        """Pass on that a request has ended; who hears of it may set something off."""
        self.on_done(seq, index, time_s, tokens, status)
        self.horizon_s = self.env.peek()

    # -- what policies ask ------------------------------------------------------------------------------------------

    def price(self, prompt_tokens: int, history_tokens: int = 0) -> float:
        """Seconds of a step with all decodes and one chunk (see `View.step_s`)."""
        c, end, decode = prompt_tokens, history_tokens + prompt_tokens, self.decode
        n, pairs = decode.n, c * (2 * end - c + 1) // 2
        if decode.plain:
            context = decode.offsets + n * (decode.counter + 1)
            work = new_tuple(StepWork, (c, int(c > 0), pairs, end, n, (context,), n, context - decode.inputs))
        else:
            contexts, generated = decode.context_tokens(), decode.generated_tokens()
            work = new_tuple(StepWork, (c, int(c > 0), pairs, end, n, contexts, n, generated))
        return self.cost.step_s(work)

    def steps_done(self) -> int:
        """Steps of the leap in progress that have ended by now."""
        if self.mixed or self.n_steps < 2:
            return 0
        return steps_by(self.first_s, self.delta_s, self.env.now - self.start_s) - 1

    def true_output_tokens(self, seq: Sequence) -> int:
        """The oracle's answer; refused to a policy that does not say it is one."""
        if not getattr(self.policy, "oracle", False):
            self._fail(seq, "its true output length is an oracle: the policy must say `oracle = True`")
        return self.seats.outputs[seq.index]

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _on_step_end(self, event: Event) -> None:
        if event is self.event:  # else a leap that was cut short
            self._run()

    def _set_off(self) -> None:
        """An idle engine starts."""
        self.horizon_s = self.env.peek()
        if self._begin():
            self._wait()

    def _wait(self) -> None:
        """Wait on the clock for the end of the step in progress, unless it comes before anything else happens."""
        if self.end_s < self.env.peek():
            self._run()
        else:
            self.event = StepEnd(self.env, self.end_s - self.env.now, self._on_step_end)

    def _run(self) -> None:
        """End the step in progress and take more, until one outlasts the next event of the simulation."""
        self.horizon_s = self.env.peek()
        enough = len(self.rows) + AT_A_TIME
        while len(self.rows) < enough:
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
        plan = None
        if not self.plan.ask_every_step:
            if self.glides and self.link is None:
                plan = glide(self)
                if plan is UNDERWAY:
                    return True
            if plan is None and self.decode.n and not self.waiting and not self.prefilling:
                limit = self._leap_limit(DECODE_ALL)
                if limit:  # KV suffices: all decode, no policy need be asked
                    self._start_leap(DECODE_ALL, limit)
                    return True
        if plan is None:
            if self.kv.evictable and self.paged and self.waiting and self.decode.n:
                self.kv.vacate(self.decode.blocks_in(1))
            plan = self.ask(self.view)
        if plan.chunks and not plan.preempt:
            self.start_mixed(plan)
            return True
        if self._is_empty(plan):
            self.seats.release_leaving()
            self.absorb(self.now_s)
            plan = self.ask(self.view)
            if self._is_empty(plan):
                self._go_idle()
                return False
        return self._start(plan)

    def _is_empty(self, plan: Plan) -> bool:
        return not plan.chunks and not plan.preempt and not (plan.decode and self.decode.n)

    def _go_idle(self) -> None:
        if (self.running or self.waiting) and not self._awaits():
            self._fail(next(iter(self.running or self.waiting)), "idle while there is work that fits")
        self.plan = DECODE_ALL
        self.idle = True
        self.event = None
        self.n_steps = 0
        self._sleep()

    @property
    def is_loading(self) -> bool:
        """Whether KV is on its way to it."""
        return False

    def _awaits(self) -> bool:
        """Whether KV that somebody else has to free is why nothing fits."""
        return bool(self.seats.parked)

    # -- arrivals ---------------------------------------------------------------------------------------------------

    def absorb(self, until_s: float) -> None:
        """Hear of what has arrived until then."""
        inbox = self.inbox
        while inbox and inbox[0][0] <= until_s:
            self._hear(inbox.popleft()[1], until_s)
        while self.coming_s <= until_s:
            self.waiting.append(self.coming)
            self._draw()

    def _hear(self, seq: Sequence, until_s: float) -> None:
        """Of an arrival, or of a client that has given up."""
        if not seq.aborted or seq.patient_until_s > until_s:
            self.waiting.append(seq)
        else:
            self.seats.abort(seq)

    def _draw(self) -> None:
        """Look ahead to the next arrival of the feed."""
        outputs, most = self.seats.outputs, self.max_tokens
        for seq in self.arrivals:  # one, unless it is rejected
            if seq.input_tokens + outputs[seq.index] <= most:
                self.coming, self.coming_s = seq, seq.arrival_s
                return
            self.seats.done(seq, REJECTED, seq.arrival_s, 0)
        self.coming_s = inf

    def unheard(self) -> Collection[tuple[float, Sequence]]:
        """Who has arrived, with its time, but is not in the queue yet: the next plan will see it, or the one after."""
        while self.coming_s <= self.now_s:
            self.inbox.append((self.coming_s, self.coming))
            self._draw()
        return self.inbox

    def _sleep(self) -> None:
        """Idle until the coming arrival of the feed."""
        if self.coming_s < inf:
            self.event = StepEnd(self.env, self.coming_s - self.env.now, self._wake)

    def _wake(self, _: Event) -> None:
        self.now_s = self.coming_s
        self.absorb(self.now_s)
        if not self.waiting:
            self._sleep()
            return
        self.idle = False
        self._set_off()

    # -- start of a step --------------------------------------------------------------------------------------------

    def set_out(
        self, plan: Plan, first_s: float, delta_s: float, n_steps: int, end_s: float, *, mixed: bool
    ) -> None:
        """A step or leap begins now, and will be waited for."""
        self.plan, self.mixed = plan, mixed
        self.first_s, self.delta_s, self.n_steps = first_s, delta_s, n_steps
        self.start_s, self.end_s = self.now_s, end_s
        if not self.now_s < end_s < inf:
            self._fail_step()
        if self.seats.leaving:
            self.seats.release_leaving()

    def _start(self, plan: Plan) -> bool:
        for seq in plan.preempt:
            self.seats.preempt(seq, self.now_s)
        if plan.chunks:
            self.start_mixed(plan)
            return True
        if not self.decode.n:
            # everybody has given way: plan anew, with nothing in flight and what that freed
            self.seats.release_leaving()
            self.absorb(self.now_s)
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
            or (self.waiting and (self.seats.leaving or plan.preempt))
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
        decode, start = self.decode, self.now_s
        if self.lines is not None:
            n = decode.n
            context = decode.offsets + n * (decode.counter + 1)
            self.context = float(context)
            ends, pieces = self.lines[n]
            piece = bisect_left(ends, context) if context > ends[0] else 0
            fixed, slope = pieces[piece]
            if context + n * (limit - 1) > ends[piece]:
                limit = int((ends[piece] - context) // n) + 1
            first, delta = fixed + slope * context - self.generated_s * decode.inputs, slope * n
        else:
            first, delta, limit = self._leap(limit)
        if self.link is not None and self.link.pending:
            first, limit = self.link.stretch(first), 1
        end = start + limit * first + delta * (limit * (limit - 1) // 2)
        if self.coming_s < end and not plan.deaf:
            heard = self._steps_heard(first, delta)
            if heard < limit:
                limit = heard
                end = start + limit * first + delta * (limit * (limit - 1) // 2)
        self.set_out(plan, first, delta, limit, end, mixed=False)

    def _steps_heard(self, first_s: float, delta_s: float) -> int:
        """Steps until the plan that sees the coming arrival of the feed (depth 1: one step later)."""
        after_s = self.coming_s - self.now_s
        return steps_by(first_s, delta_s, after_s) + self.depth if after_s > 0.0 else 1

    def _leap(self, limit: int) -> tuple[float, float, int]:
        """The next steps' durations from a cost model without lines."""
        decode = self.decode
        contexts, growth = decode.context_tokens(), decode.growth()
        self.context, self.windowed = contexts[0], (*contexts[1:], *growth) if self.no_growth else ()
        work = StepWork(0, 0, 0, 0, decode.n, contexts, decode.n, decode.generated_tokens())
        return self.cost.leap(work, growth, limit) if limit > 1 else (self.cost.step_s(work), 0.0, 1)

    def start_mixed(self, plan: Plan) -> None:
        """Start a step of decodes, as far as the plan wants them, and chunks of prompts."""
        decode, seats, now = self.decode, self.seats, self.now_s
        n = decode.n if plan.decode else 0
        if n and (need := decode.borders[decode.counter % decode.cycle]):
            if need > self.kv.available:
                self._fail(plan.chunks[0][0], f"decodes need {need} KV blocks, {self.kv.available} are free")
            self.kv.take(need)
        chunks: list[tuple[Sequence, int]] = []
        total = pairs = kv_tokens = 0
        rows = n
        for seq, tokens in plan.chunks:
            c = seats.start_chunk(seq, tokens, now)
            if c:
                chunks.append((seq, c))
                end = seq.computed_tokens + c
                total += c
                pairs += c * (2 * end - c + 1)
                kv_tokens += end
                if end == seq.prompt_tokens:
                    rows += 1
        if seats.pads:
            total, pairs, kv_tokens = _padded(chunks)
        if self.compression is not None and self.compression.prefill_window is not None:
            pairs, kv_tokens = _windowed(chunks, self.compression.prefill_window)
        if total + n > self.limits.max_num_batched_tokens:
            self._check_budget(chunks, n)
        plan.chunks = chunks
        if n:
            contexts, generated = decode.context_tokens(), decode.generated_tokens()
        else:
            contexts, generated = decode.no_context(), 0.0
        self.work = work = new_tuple(
            StepWork, (total, len(chunks), pairs // 2, kv_tokens, n, contexts, rows, generated)
        )
        first = self.cost.step_s(work)
        if self.link is not None and self.link.pending:
            first = self.link.stretch(first)
        if self.adapters is not None and self.adapters.due:
            first = self.adapters.stretch(first)
        self.set_out(plan, first, 0.0, 1, now + first, mixed=True)

    def _check_budget(self, chunks: list[tuple[Sequence, int]], n_decode: int) -> None:
        """Raise unless the real tokens (padding is the policy's own loss) are within the budget, or a prompt is alone."""
        if self.policy.whole_prompts and len(chunks) <= 1:
            return
        tokens, budget = sum([c for _, c in chunks]) + n_decode, self.limits.max_num_batched_tokens
        if tokens > budget:
            self._fail(chunks[-1][0], f"{tokens} tokens exceed the budget of {budget}")

    # -- end of a step ----------------------------------------------------------------------------------------------

    def _end_leap(self) -> None:
        decode, kv, n_steps, start, first, delta = (
            self.decode, self.kv, self.n_steps, self.start_s, self.first_s, self.delta_s
        )  # fmt: skip
        self.now_s = now = self.end_s
        n, live = decode.n, decode.n_live
        if decode.emit_s != start or decode.late:
            live = self.log_gaps()
        opened = decode.blocks_in(n_steps)
        if opened:
            kv.take(opened)
        self.steps += n_steps
        self.rows += pack_row(
            self.index, start, n_steps, first, delta, n, live, len(self.waiting), kv.free + kv.evictable,
            0, 0, 0, 0, n, decode.generated_tokens(), self.context,
        )  # fmt: skip
        if self.windowed:
            self.rows += self.step_log.pack_more(*self.windowed)
        if decode.advance(n_steps, now):
            self.seats.finish(now)
        if self.coming_s <= now or self.inbox:
            last = n_steps - 1  # depth 1: the plan now due was made when the last step began
            self.absorb(start + last * first + delta * (last * (last - 1) // 2) if self.depth else now)

    def _end_mixed(self) -> None:
        decode, kv, seats, start = self.decode, self.kv, self.seats, self.start_s
        self.now_s = now = self.end_s
        tokens, seqs, pairs, kv_tokens, n, contexts, logits, generated = self.work
        live = 0
        if n:
            live = decode.n_live
            if decode.emit_s != start or decode.late:
                live = self.log_gaps()
        self.steps += 1
        self.rows += pack_row(
            self.index, start, 1, self.first_s, 0.0, n, live, len(self.waiting), kv.free + kv.evictable,
            tokens, seqs, pairs, kv_tokens, logits, generated, contexts[0],
        )  # fmt: skip
        if self.no_growth:
            growth = self.decode.growth() if n else self.no_growth
            self.rows += self.step_log.pack_more(*contexts[1:], *growth)
        if n and decode.advance(1, now):
            seats.finish(now)
        chunks = self.plan.chunks
        if seats.life_log.with_chunks:
            seats.life_log.chunks(chunks, self.index, start, self.first_s)
        for seq, tokens in chunks:
            seq.computed_tokens = done = seq.computed_tokens + tokens
            if done == seq.prompt_tokens:
                seats.emit_first(seq, now, start, logits)
        if seats.pads:
            seats.end_batch()
        if self.coming_s <= now or self.inbox:
            self.absorb(start if self.depth else now)

    def log_gaps(self) -> int:
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

    def _fail(self, seq: Sequence, what: str) -> NoReturn:
        name = type(self.policy).__name__
        raise PolicyError(f"{name}: replica {self.index}, step {self.steps}, sequence {seq.index}: {what}")

    def _fail_step(self) -> NoReturn:
        raise InvariantError(
            f"replica {self.index}, step {self.steps}: {self.n_steps} steps of {self.end_s - self.start_s} s"
        )

    # -- leaps ------------------------------------------------------------------------------------------------------

    def _cut_leap(self) -> None:
        """End the leap at the border of the step in progress (depth 1: one step later, it is planned already)."""
        first, delta = self.first_s, self.delta_s
        n = steps_by(first, delta, self.env.now - self.start_s) + self.depth
        if n < self.n_steps:
            self.n_steps = n
            self.end_s = self.start_s + n * first + delta * (n * (n - 1) // 2)
            self._wait()


def _windowed(chunks: list[tuple[Sequence, int]], window: int) -> tuple[int, int]:
    """Twice the query-key pairs, and the keys read, of chunks whose tokens see at most `window`."""
    pairs = sum([windowed_pairs(seq.computed_tokens, c, window) for seq, c in chunks])
    return 2 * pairs, sum([min(seq.computed_tokens, window) + c for seq, c in chunks])


def _padded(chunks: list[tuple[Sequence, int]]) -> tuple[int, int, int]:
    """Tokens, twice the pairs and keys of whole prompts padded to the longest of the step."""
    widest = max([c for _, c in chunks], default=0)
    ends = [seq.computed_tokens + widest for seq, _ in chunks]
    return widest * len(chunks), sum([widest * (2 * end - widest + 1) for end in ends]), sum(ends)
