"""One replica: the only place where time and state move. Step loop: plan, validate, kv, cost, wait, advance.

Each step (or leap of pure-decode steps) is one SimPy event. Two rules make the async pipeline:
a plan sees what had arrived when the *previous* step started, and what a step frees is free one plan later. With
`pipeline_depth` 0 a plan sees everything up to its own instant.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Indexable
from dataclasses import dataclass
from math import inf, sqrt
from typing import TYPE_CHECKING, Any

import simpy
from stepline.traces.errors import InvariantError, PolicyError

from ..cost.work import Progression, StepWork
from .contracts import Plan
from .decode_set import DecodeSet
from .kv_cache import KVCache
from .request_log import FINISHED, REJECTED, TIMED_OUT
from .sequence import DECODING, DONE, PREFILLING, WAITING, Sequence
from .view import ReplicaView

if TYPE_CHECKING:
    from ..cost.specs import EngineProfile
    from ..cost.work import CostModel
    from .contracts import BatchPolicy, PreemptionPolicy
    from .step_log import GapLog, StepLog


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica's server flags allow; names as in vLLM."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    long_prefill_token_threshold: int = 0


class StepEnd(simpy.Event):  # type: ignore[misc]  # simpy is untyped
    """End of a step: like a Timeout, but after everything else that happens at the same instant."""

    def __init__(self, env: simpy.Environment, delay_s: float, callback: Callable[[Any], None]) -> None:
        if not 0.0 <= delay_s < inf:
            raise InvariantError(f"a step of {delay_s} s")
        super().__init__(env)
        self._ok = True
        self._value = None
        self.callbacks.append(callback)
        env.schedule(self, 2, delay_s)


class Replica:
    """An engine on one TP group of GPUs.

    `outputs[i]`: true output tokens of trace row i. `on_done(seq, status, time_s)`: called when a request ends; the
    time is at the client.
    """

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
        on_done: Callable[[Sequence, int, float, int], None],
    ) -> None:
        self.env = env
        self.index = index
        self.limits = limits
        self.depth = engine.pipeline_depth
        self.output_delay_s = engine.output_delay_s
        self.cost = cost_model
        self.policy = policy
        self.preemption = preemption
        self.kv = kv
        self.outputs = outputs
        self.step_log = step_log
        self.gap_log = gap_log
        self.on_done = on_done
        self.decode = DecodeSet(kv.block_size, windows)
        self.waiting: deque[Sequence] = deque()
        self.running: dict[Sequence, None] = {}
        self.prefilling: dict[Sequence, None] = {}
        self.leaving: list[tuple[Sequence, int]] = []
        self.inbox: deque[tuple[float, Sequence]] = deque()
        self.grows = policy.reservation != "contiguous"
        self.steps = 0
        self.plan = Plan([])
        self.work = StepWork()
        self.growth: tuple[int, ...] = ()
        self.span = Progression(0.0, 0.0, 0)
        self.start_s = 0.0
        self.mixed = False
        self.idle = True
        self.event: simpy.Event | None = None
        self.view = ReplicaView(self)

    # -- the outside world ------------------------------------------------------------------------------------------

    def submit(self, seq: Sequence) -> None:
        """A request arrives (now)."""
        if not self._can_ever_serve(seq):
            seq.state = DONE
            self.on_done(seq, REJECTED, self.env.now, 0)
            return
        if self.idle:
            self.waiting.append(seq)
            if self.event is None:
                self.event = StepEnd(self.env, 0.0, self._on_wake)
        else:
            self.inbox.append((self.env.now, seq))
            if self.span.n > 1 and not self.plan.deaf:
                self._cut_leap()

    def abort(self, seq: Sequence) -> None:
        """The client has given up on a sequence (now); the engine learns of it like of an arrival."""
        if seq.state == DONE:
            return
        seq.aborted = True
        if self.idle:
            self._abort(seq, self.env.now)
            return
        self.inbox.append((self.env.now, seq))
        if self.span.n > 1:
            self._cut_leap()

    def _can_ever_serve(self, seq: Sequence) -> bool:
        tokens = seq.input_tokens + self.outputs[seq.index]
        if tokens > self.limits.max_model_len:
            return False
        return self.kv.blocks_for(tokens - 1) <= self.kv.usable

    # -- what policies ask ------------------------------------------------------------------------------------------

    def blocks_needed(self, seq: Sequence, tokens: int) -> int:
        """Blocks taken if `tokens` more prompt tokens of `seq` are computed (see `View.blocks_needed`)."""
        size = self.kv.block_size
        if seq.state != WAITING:
            if seq.reserved_blocks:
                return 0
            done = seq.computed_tokens
            return -(-(done + tokens) // size) + -done // size
        match = self.kv.match(seq)
        if self.policy.reservation == "paged":
            end = match.blocks * size + tokens
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
            tokens = seq.decode_offset + self.decode.counter if seq.state == DECODING else seq.computed_tokens
            total = self.kv.blocks_for(tokens)
        return total - sum([s.blocks for s in seq.held_segments if s.refs > 1])

    # -- the loop ---------------------------------------------------------------------------------------------------

    def _on_wake(self, _: simpy.Event) -> None:
        self.event = None
        self.idle = False
        self._next_step()

    def _on_step_end(self, event: simpy.Event) -> None:
        if event is not self.event:
            return  # a leap that was cut short
        span, start = self.span, self.start_s
        self._advance()
        seen = self.env.now
        if self.depth:
            n = span.n - 1  # where the last step began
            seen = start + n * span.first_s + span.delta_s * (n * (n - 1) // 2)
            self._absorb(seen)
            self._next_step()
        else:
            self._release_leaving()
            self._absorb(seen)
            self._next_step()

    def _next_step(self) -> None:
        self.kv.now_s = self.env.now
        plan = self.policy.plan(self.view)
        if not plan.chunks and not plan.preempt and not (plan.decode and self.decode.n):
            self._release_leaving()
            self._absorb(self.env.now)
            plan = self.policy.plan(self.view)
            if not plan.chunks and not plan.preempt and not (plan.decode and self.decode.n):
                self._go_idle()
                return
        self._start(plan)
        if self.depth:
            self._release_leaving()

    def _go_idle(self) -> None:
        if self.running or self.waiting:
            self._fail(next(iter(self.running or self.waiting)), "idle while there is work that fits")
        self.idle = True
        self.event = None
        self.span = Progression(0.0, 0.0, 0)

    def _absorb(self, until_s: float) -> None:
        inbox = self.inbox
        while inbox and inbox[0][0] <= until_s:
            time_s, seq = inbox.popleft()
            if seq.aborted:
                self._abort(seq, time_s)
            else:
                self.waiting.append(seq)

    def _release_leaving(self) -> None:
        for seq, kv_tokens in self.leaving:
            self.kv.release(seq, kv_tokens)
        self.leaving.clear()

    # -- start of a step --------------------------------------------------------------------------------------------

    def _start(self, plan: Plan) -> None:
        for seq in plan.preempt:
            self._preempt(seq)
        self.plan = plan
        self.start_s = self.env.now
        self.mixed = bool(plan.chunks)
        decode = self.decode
        if self.mixed:
            self.work = self._start_mixed(plan)
            limit = 1
        else:
            contexts = decode.context_tokens()
            self.work = StepWork(0, 0, 0, 0, decode.n, contexts, decode.n)
            limit = self._leap_limit(plan)
        if limit > 1:
            self.growth = decode.growth()
            self.span = span = self.cost.leap(self.work, self.growth, limit)
        else:
            self.span = span = Progression(self.cost.step_s(self.work), 0.0, 1)
        self.event = StepEnd(self.env, _span_s(span, span.n), self._on_step_end)

    def _leap_limit(self, plan: Plan) -> int:
        decode, free = self.decode, self.kv.available
        heard = any([not plan.deaf or seq.aborted for _, seq in self.inbox])
        pending = heard or plan.preempt or (self.leaving and self.waiting)
        limit = 1 if plan.ask_every_step or pending else decode.steps_to_change()
        limit = decode.steps_within(free, limit)
        if limit == 0:
            self._fail(next(iter(self.running)), f"decode step needs more KV blocks than the {free} free")
        return limit

    def _start_mixed(self, plan: Plan) -> StepWork:
        decode = self.decode
        n = decode.n if plan.decode else 0
        if n:
            need = decode.blocks_in(1)
            if need > self.kv.available:
                self._fail(plan.chunks[0][0], f"decodes need {need} KV blocks, {self.kv.available} are free")
            self.kv.take(need)
        chunks = []
        for seq, tokens in plan.chunks:
            taken = self._start_chunk(seq, tokens)
            if taken:
                chunks.append((seq, taken))
        plan.chunks = chunks
        tokens = sum([c for _, c in chunks])
        alone = self.policy.whole_prompts and len(chunks) <= 1
        if tokens + n > self.limits.max_num_batched_tokens and not alone:
            self._fail(
                chunks[-1][0],
                f"{tokens + n} tokens exceed the budget of {self.limits.max_num_batched_tokens}",
            )
        if self.policy.pads:
            widest = max([c for _, c in chunks])
            shapes = [(s.computed_tokens, widest) for s, _ in chunks]
        else:
            shapes = [(s.computed_tokens, c) for s, c in chunks]
        return StepWork(
            sum([c for _, c in shapes]),
            len(shapes),
            sum([c * done + c * (c + 1) // 2 for done, c in shapes]),
            sum([done + c for done, c in shapes]),
            n,
            decode.context_tokens() if n else (0,) * len(decode.sums),
            n + sum([s.computed_tokens + c == s.prompt_tokens for s, c in chunks]),
        )

    def _start_chunk(self, seq: Sequence, tokens: int) -> int:
        """Admit if waiting, take KV, and return the tokens really computed (0: its cached prefix was just evicted)."""
        if tokens < 1:
            self._fail(seq, f"chunk of {tokens} tokens")
        if seq.state == WAITING:
            planned = seq.match
            need = self.blocks_needed(seq, tokens)
            if need > self.kv.available:
                if planned is not seq.match:
                    return 0  # an earlier admission of this step evicted its prefix: it waits on, as in vLLM
                self._fail(seq, f"admission needs {need} KV blocks, {self.kv.available} are free")
            self._admit(seq)
        elif seq.state != PREFILLING:
            self._fail(seq, "has no prompt left to compute")
        done = seq.computed_tokens
        tokens = min(tokens, seq.prompt_tokens - done)
        if not seq.reserved_blocks:
            need = self.blocks_needed(seq, tokens)
            if need > self.kv.available:
                self._fail(seq, f"chunk needs {need} KV blocks, {self.kv.available} are free")
            self.kv.take(need)
        self.kv.commit(seq, done + tokens)
        return tokens

    def _admit(self, seq: Sequence) -> None:
        if len(self.running) + len(self.leaving) >= self.limits.max_num_seqs:
            self._fail(seq, f"no seat left: max_num_seqs is {self.limits.max_num_seqs}")
        if self.waiting[0] is seq:
            self.waiting.popleft()
        else:
            self.waiting.remove(seq)
        cached = self.kv.admit(seq)
        reservation = self.policy.reservation
        if reservation != "paged":
            whole = (
                self.kv.blocks_for(seq.prompt_tokens)
                if reservation == "prompt"
                else self._contiguous_blocks(seq)
            )
            seq.reserved_blocks = whole
            self.kv.take(whole - cached // self.kv.block_size)
        seq.computed_tokens = cached
        seq.state = PREFILLING
        self.running[seq] = None
        self.prefilling[seq] = None
        if seq.scheduled_s is None:
            seq.scheduled_s = self.env.now
            seq.cached_tokens = cached

    # -- end of a step ----------------------------------------------------------------------------------------------

    def _advance(self) -> None:
        now, plan, span, decode = self.env.now, self.plan, self.span, self.decode
        self.steps += span.n
        emitted = 0
        if self.work.n_decode:
            emitted = decode.n_live * span.n
            self._log_gaps(span)
            if not self.mixed:
                self.kv.take(decode.blocks_in(span.n))
            decode.advance(span.n, now)
        self._log_step(span, emitted)
        if self.work.n_decode:
            for seq in decode.finished():
                self._finish(seq, now)
        for seq, tokens in plan.chunks:
            seq.computed_tokens += tokens
            if seq.computed_tokens == seq.prompt_tokens:
                self._emit_first(seq, now)
        if self.policy.pads and decode.n_live == 0 and not self.prefilling:
            self._end_batch()

    def _log_step(self, span: Progression, emitted: int) -> None:
        work = self.work
        contexts = work.context_tokens
        growth = self.growth if span.n > 1 else (0,) * len(contexts)
        self.step_log.append(
            (
                self.index, self.start_s, _span_s(span, span.n), span.n, span.first_s, span.delta_s,
                work.prefill_tokens, work.prefill_seqs, work.attention_pairs, work.prefill_kv_tokens,
                work.n_decode, contexts[0], work.logits_rows, len(self.running), len(self.waiting),
                self.kv.usable - self.kv.free - self.kv.evictable, emitted + work.logits_rows - work.n_decode,
                *contexts[1:], *growth,
            )
        )  # fmt: skip

    def _log_gaps(self, span: Progression) -> None:
        decode, log = self.decode, self.gap_log
        end_s = self.start_s + span.first_s
        main = decode.n_live
        if decode.late:
            for time_s, count in decode.late:
                log.add(end_s - time_s, 0.0, 1, count)
                main -= count
            decode.late.clear()
        if main and decode.emit_s == self.start_s and main == decode.n_live:
            log.add(span.first_s, span.delta_s, span.n, main)
            return
        if main:
            log.add(end_s - decode.emit_s, 0.0, 1, main)
        if span.n > 1:
            log.add(span.first_s + span.delta_s, span.delta_s, span.n - 1, decode.n_live)

    def _emit_first(self, seq: Sequence, now: float) -> None:
        """The prompt is complete: its last chunk yields a token (the first, or the next after a recompute)."""
        del self.prefilling[seq]
        if self.grows:
            seq.reserved_blocks = 0
        if seq.first_token_s is None:
            seq.first_token_s = now + self.output_delay_s
        else:
            self.gap_log.add(now - seq.last_token_s, 0.0, 1, 1)
        seq.last_token_s = now
        seq.generated_tokens += 1
        left = self.outputs[seq.index] - seq.generated_tokens
        if left:
            self.decode.join(seq, seq.prompt_tokens, left, grows=self.grows)
        else:
            self._depart(seq, seq.prompt_tokens)
            self._done(seq, FINISHED, now + self.output_delay_s, seq.generated_tokens)

    def _finish(self, seq: Sequence, now: float) -> None:
        kv_tokens = self.decode.leave(seq, grows=self.grows, pad=self.policy.pads)
        seq.last_token_s = now
        self._depart(seq, kv_tokens)
        self._done(seq, FINISHED, now + self.output_delay_s, self.outputs[seq.index])

    def _depart(self, seq: Sequence, kv_tokens: int) -> None:
        """A sequence leaves its seat: at once, one plan later, or when its static batch ends."""
        if not self.policy.pads:
            del self.running[seq]
        self.leaving.append((seq, kv_tokens)) if self.depth and not self.policy.pads else self._let_go(
            seq, kv_tokens
        )

    def _let_go(self, seq: Sequence, kv_tokens: int) -> None:
        if self.policy.pads:
            seq.computed_tokens = kv_tokens  # its row and its blocks stay until the batch ends
        else:
            self.kv.release(seq, kv_tokens)

    def _end_batch(self) -> None:
        for seq in self.running:
            self.kv.release(seq, seq.computed_tokens)
        self.running.clear()
        self.decode.clear()

    def _done(self, seq: Sequence, status: int, time_s: float, tokens: int) -> None:
        seq.state = DONE
        self.on_done(seq, status, time_s, tokens)

    # -- leaving early ----------------------------------------------------------------------------------------------

    def _preempt(self, seq: Sequence) -> None:
        if seq not in self.running or seq.state not in (PREFILLING, DECODING) or self.policy.pads:
            self._fail(seq, "cannot be preempted: it is not running")
        kv_tokens = self._drop(seq)
        self.kv.release(seq, kv_tokens, keep=True)
        seq.prompt_tokens = seq.input_tokens + seq.generated_tokens
        seq.computed_tokens = 0
        seq.preemptions += 1
        seq.state = WAITING
        self.waiting.appendleft(seq)

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

    def _abort(self, seq: Sequence, time_s: float) -> None:
        if seq.state == DONE:
            return
        if seq.state == WAITING:
            if seq in self.waiting:
                self.waiting.remove(seq)
        elif self.policy.pads and seq.state == DECODING:
            seq.generated_tokens = self.decode.generated(seq, self.outputs[seq.index])
            seq.computed_tokens = self.decode.leave(seq, pad=True)
            seq.epoch += 1
        else:
            self.kv.release(seq, self._drop(seq))
        self._done(seq, TIMED_OUT, time_s, seq.generated_tokens)

    def _fail(self, seq: Sequence, what: str) -> None:
        name = type(self.policy).__name__
        raise PolicyError(f"{name}: replica {self.index}, step {self.steps}, sequence {seq.index}: {what}")

    # -- leaps ------------------------------------------------------------------------------------------------------

    def _cut_leap(self) -> None:
        """End the leap at the border of the step in progress (depth 1: one step later, it is planned already)."""
        span = self.span
        n = _steps_by(span, self.env.now - self.start_s) + (1 if self.depth else 0)
        if n < span.n:
            self.span = Progression(span.first_s, span.delta_s, n)
            delay = max(0.0, self.start_s + _span_s(span, n) - self.env.now)
            self.event = StepEnd(self.env, delay, self._on_step_end)


def _span_s(span: Progression, n: int) -> float:
    """Duration of the first n steps of a progression."""
    return n * span.first_s + span.delta_s * (n * (n - 1) // 2)


def _steps_by(span: Progression, elapsed_s: float) -> int:
    """The least n >= 1 whose first n steps last at least `elapsed_s`."""
    first, delta, limit = span
    if delta == 0.0:
        n = int(elapsed_s / first)
    else:
        b = first - delta / 2
        n = int((sqrt(b * b + 2 * delta * elapsed_s) - b) / delta) if delta > 0 else int(elapsed_s / first)
    n = max(1, min(n, limit))
    while n > 1 and _span_s(span, n - 1) >= elapsed_s:
        n -= 1
    while n < limit and _span_s(span, n) < elapsed_s:
        n += 1
    return n
