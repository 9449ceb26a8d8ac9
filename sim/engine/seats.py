"""Who is on a replica, and what befalls them: seats, prompts, first tokens, departures, preemption, giving up.

The replica decides when and says the time; sequences and their KV change here, and the request log hears of the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Indexable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from .adapters import AdapterDecodeSet, AdapterQueue
from .capped_decode_set import CappedDecodeSet
from .decode_set import DecodeSet
from .life_log import LifeLog
from .request_log import FINISHED, TIMED_OUT
from .sequence import DECODING, DONE, PREFILLING, WAITING, Sequence
from .speculative_decode_set import SpeculativeDecodeSet

if TYPE_CHECKING:
    from ..cost.specs import EngineProfile
    from .acceptance import AcceptanceTape
    from .adapters import AdapterSlots
    from .contracts import BatchPolicy, KvCompression, WaitingQueue
    from .kv_cache import KVCache, Match
    from .step_log import GapLog
    from .swap import KvStore

OnDone = Callable[[Sequence, int, float, int, int], None]
"""`on_done(seq, replica, time_s, output_tokens, status)`: a request has ended; the time is at the client."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a replica's server flags allow; names as in vLLM."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    long_prefill_token_threshold: int = 0


class Seats:
    """The sequences of one replica. `outputs[i]`: true output tokens of trace row i; `fail`: raises PolicyError.

    `tape`: acceptances of drafted tokens, where decode steps verify them. `adapters`: slots of LoRA adapters.

    waiting     in the order of the policy's queue
    running     have a seat, in order of admission; `prefilling` of them have prompt left to compute
    leaving     have finished, with their KV tokens: with an async pipeline their KV is free one plan later
    simple      who finishes leaves its seat at once, its KV one plan later, and nothing else hears of it
    parked      have finished here, but their KV stays until it has been fetched (prefill pools; None elsewhere)
    """

    __slots__ = (
        "adapters", "compression", "contiguous", "decode", "deferred", "fail", "gap_log", "grows", "index", "kv",
        "leaving", "life_log", "on_done", "on_end", "output_delay_s", "output_per_seq_s", "outputs", "pads", "paged",
        "parked", "prefilling", "running", "seats", "simple", "swap", "waiting", "whole",
    )  # fmt: skip

    def __init__(
        self,
        index: int,
        *,
        limits: Limits,
        engine: EngineProfile,
        policy: BatchPolicy,
        kv: KVCache,
        windows: tuple[int | None, ...],
        outputs: Indexable[int],
        gap_log: GapLog,
        on_done: OnDone,
        fail: Callable[[Sequence, str], NoReturn],
        swap: KvStore | None = None,
        compression: KvCompression | None = None,
        life_log: LifeLog | None = None,
        tape: AcceptanceTape | None = None,
        adapters: AdapterSlots | None = None,
    ) -> None:
        self.index = index
        self.seats = limits.max_num_seqs
        self.paged = policy.reservation == "paged"
        self.contiguous = policy.reservation == "contiguous"
        self.grows = not self.contiguous
        self.pads = policy.pads
        self.whole = policy.whole_prompts
        self.deferred = engine.pipeline_depth > 0
        self.output_delay_s = engine.output_delay_s
        self.output_per_seq_s = engine.output_per_seq_s
        self.kv = kv
        self.outputs = outputs
        self.gap_log = gap_log
        self.life_log = life_log or LifeLog()
        self.on_done = on_done
        self.fail = fail
        self.swap = swap
        self.compression = compression
        self.decode = _decode_set(kv.block_size, windows, compression, tape, adapters)
        self.adapters = adapters
        make_queue = getattr(policy, "make_queue", None)
        self.waiting: WaitingQueue = deque() if make_queue is None else make_queue()
        if adapters is not None:
            self.waiting = AdapterQueue(self.waiting, adapters)
        self.on_end: Callable[[Sequence], None] | None = getattr(self.waiting, "ended", None)
        self.running: dict[Sequence, None] = {}
        self.prefilling: dict[Sequence, None] = {}
        self.leaving: list[tuple[Sequence, int]] = []
        self.parked: dict[Sequence, int] | None = None
        self.simple = self.deferred and not self.pads and adapters is None and self.on_end is None

    # -- blocks -----------------------------------------------------------------------------------------------------

    def blocks_needed(self, seq: Sequence, tokens: int) -> int:
        """Blocks taken if `tokens` more prompt tokens of `seq` are computed (see `View.blocks_needed`)."""
        kv = self.kv
        size = kv.block_size
        if seq.state != WAITING:
            if seq.reserved_blocks:
                return 0
            done = seq.computed_tokens
            return -(-(done + tokens) // size) + -done // size
        if seq.swapped_tokens:
            return kv.blocks_for(seq.swapped_tokens + tokens if self.paged else seq.prompt_tokens)
        match = kv.match(seq)
        if self.contiguous:
            return self._contiguous_blocks(seq) - match.blocks + match.pins
        end = min(match.blocks * size + tokens, seq.prompt_tokens) if self.paged else seq.prompt_tokens
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

    # -- prompts ----------------------------------------------------------------------------------------------------

    def start_chunk(self, seq: Sequence, tokens: int, now_s: float) -> int:
        """Admit if waiting, take KV, and return the tokens really computed (0: with less cached it no longer fits)."""
        if tokens < 1:
            self.fail(seq, f"chunk of {tokens} tokens")
        kv = self.kv
        if seq.state == WAITING:
            certain = self.paged and seq.hash_ids is None and not seq.swapped_tokens
            if not certain and not self._fits_still(seq, tokens):
                return 0
            self._admit(seq, now_s)
        elif seq.state != PREFILLING:
            self.fail(seq, "has no prompt left to compute")
        done = seq.computed_tokens
        if tokens > seq.prompt_tokens - done:
            tokens = seq.prompt_tokens - done
        if not seq.reserved_blocks:
            size = kv.block_size
            need = -(-(done + tokens) // size) + -done // size
            if need > kv.free + kv.evictable:
                self.fail(seq, f"chunk needs {need} KV blocks, {kv.available} are free")
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
            self.fail(seq, f"admission needs {need} KV blocks, {available} are free")
        return True

    def _admit(self, seq: Sequence, now_s: float) -> None:
        if len(self.running) + len(self.leaving) >= self.seats:
            self.fail(seq, f"no seat left: max_num_seqs is {self.seats}")
        waiting = self.waiting
        if waiting[0] is seq:
            waiting.popleft()
        else:
            waiting.remove(seq)
        if seq.swapped_tokens:
            cached, held = self._swap_in(seq)
        else:
            cached = self.kv.admit(seq)
            held = cached // self.kv.block_size
        if not self.paged:
            whole = self._contiguous_blocks(seq) if self.contiguous else self.kv.blocks_for(seq.prompt_tokens)
            seq.reserved_blocks = whole
            self.kv.take(whole - held)
        seq.computed_tokens = cached
        seq.state = PREFILLING
        self.running[seq] = self.prefilling[seq] = None
        if self.adapters is not None:
            self.adapters.take(seq)
        if seq.scheduled_s is None:
            seq.scheduled_s = now_s
            seq.cached_tokens = cached
        else:
            self.life_log.resumed(seq, now_s)

    def _swap_in(self, seq: Sequence) -> tuple[int, int]:
        """Bring a swapped sequence's KV back; returns its tokens and blocks."""
        tokens, blocks = seq.swapped_tokens, self.kv.blocks_for(seq.swapped_tokens)
        self.kv.readmit(seq, blocks)
        if self.swap is not None:
            self.swap.take(blocks)
        seq.swapped_tokens = 0
        return tokens, blocks

    def emit_first(self, seq: Sequence, now_s: float, start_s: float, rows: int) -> None:
        """The prompt is complete: its last chunk yields a token (the first, or the next after a recompute).

        `start_s`: of the step that ends now; `rows`: of its logits: the newest sequence is the last on the output path.
        """
        del self.prefilling[seq]
        if self.grows:
            seq.reserved_blocks = 0
        self.first_token(seq, now_s, start_s, rows)

    def first_token(self, seq: Sequence, now_s: float, start_s: float, rows: int) -> None:
        """`emit_first` for a sequence that is not among `prefilling` and has nothing reserved."""
        if seq.first_token_s is None:
            seq.first_token_s = now_s + self.output_delay_s + self.output_per_seq_s * rows
        else:
            self.gap_log.add(now_s - seq.last_token_s, 0.0, 1, 1, start_s)
        seq.last_token_s = now_s
        seq.generated_tokens += 1
        left = self.outputs[seq.index] - seq.generated_tokens
        kv_tokens = seq.prompt_tokens if self.compression is None else self._compressed(seq, self.compression)
        if left:
            self.decode.join(seq, kv_tokens, left, grows=self.grows)
        else:
            self._depart(seq, kv_tokens, now_s)

    def _compressed(self, seq: Sequence, compression: KvCompression) -> int:
        """Drop what is not kept of a computed prompt; returns the tokens held."""
        kept = compression.kept_tokens(seq.prompt_tokens)
        cap = compression.cap_tokens
        if not 0 < kept <= seq.prompt_tokens or (cap is not None and kept > cap):
            most = seq.prompt_tokens if cap is None else min(cap, seq.prompt_tokens)
            self.fail(seq, f"{type(compression).__name__}: kept_tokens: got {kept}, expected 1 to {most}")
        if self.grows:
            self.kv.give_back(self.kv.blocks_for(seq.prompt_tokens) - self.kv.blocks_for(kept))
        seq.computed_tokens = kept
        return kept

    # -- endings ----------------------------------------------------------------------------------------------------

    def finish(self, now_s: float) -> None:
        """Those that have just emitted their last token leave."""
        finished = self.decode.pop_finished(grows=self.grows, pad=self.pads)
        if not self.simple:
            for seq, kv_tokens in finished:
                self._depart(seq, kv_tokens, now_s)
            if self.pads:
                self.end_batch()
            return
        self.leaving += finished  # `_depart` and `done`, where nobody else asks
        end_s = now_s + self.output_delay_s
        for seq, _ in finished:
            del self.running[seq]
            seq.state = DONE
            first_s = seq.first_token_s
            self.on_done(
                seq, self.index, first_s if first_s > end_s else end_s, self.outputs[seq.index], FINISHED  # type: ignore[operator,arg-type]
            )  # fmt: skip

    def _depart(self, seq: Sequence, kv_tokens: int, now_s: float) -> None:
        """A finished sequence leaves its seat: at once, one plan later, or when its static batch ends."""
        if self.pads:
            seq.computed_tokens = kv_tokens
        else:
            del self.running[seq]
            if self.parked is not None:
                self.parked[seq] = kv_tokens
            elif self.deferred:
                self.leaving.append((seq, kv_tokens))
            else:
                self.kv.release(seq, kv_tokens)
        end_s = now_s + self.output_delay_s
        if seq.first_token_s > end_s:  # type: ignore[operator]  # it has emitted
            end_s = seq.first_token_s  # type: ignore[assignment]
        self.done(seq, FINISHED, end_s, self.outputs[seq.index])

    def end_batch(self) -> None:
        """A static batch whose last member has finished leaves as a whole."""
        if self.decode.n_live or self.prefilling:
            return
        for seq in self.running:
            self.kv.release(seq, seq.computed_tokens)
        self.running.clear()
        self.decode.clear()

    def release_leaving(self) -> None:
        """The KV of those that have left is free."""
        release = self.kv.release
        for seq, kv_tokens in self.leaving:
            release(seq, kv_tokens)
        self.leaving.clear()

    def done(self, seq: Sequence, status: int, time_s: float, tokens: int) -> None:
        """A request has ended, with that many tokens generated; its client knows at `time_s`."""
        seq.state = DONE
        if self.adapters is not None:
            self.adapters.leave(seq)
        if self.on_end is not None:
            seq.generated_tokens = tokens
            self.on_end(seq)
        self.on_done(seq, self.index, time_s, tokens, status)

    def preempt(self, seq: Sequence, now_s: float) -> None:
        """Take a running sequence off; it waits at the head of the queue, its tokens kept."""
        if seq not in self.running or seq.state not in (PREFILLING, DECODING) or self.pads:
            self.fail(seq, "cannot be preempted: it is not running")
        kv_tokens = self._drop(seq)
        if self.adapters is not None:
            self.adapters.leave(seq)
        swapped = self.swap is not None and self.swap.put(self.kv.blocks_for(kv_tokens))
        seq.swapped_tokens = kv_tokens if swapped else 0
        if swapped and seq.hash_ids is None:
            seq.hash_ids = ()  # policies look up what is cached of it from now on
        self.kv.release(seq, kv_tokens, keep=not swapped)
        seq.prompt_tokens = seq.input_tokens + seq.generated_tokens
        seq.computed_tokens = 0
        seq.preemptions += 1
        self.life_log.preempted(seq, self.index, now_s)
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

    def abort(self, seq: Sequence) -> None:
        """The client of a sequence has given up."""
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
            self.end_batch()
        else:
            self.kv.release(seq, self._drop(seq))
        self.done(seq, TIMED_OUT, seq.patient_until_s, seq.generated_tokens)

    def clear(self) -> None:
        """Everybody is gone: the replica has failed."""
        while self.waiting:
            seq = self.waiting.popleft()
            if self.swap is not None and seq.swapped_tokens:
                self.swap.drop(self.kv.blocks_for(seq.swapped_tokens))
        for members in (self.running, self.prefilling, self.leaving):
            members.clear()
        self.decode.clear()
        if self.adapters is not None:
            self.adapters.wipe()


def _decode_set(
    block_size: int,
    windows: tuple[int | None, ...],
    compression: KvCompression | None,
    tape: AcceptanceTape | None,
    adapters: AdapterSlots | None,
) -> DecodeSet:
    if adapters is not None:
        return AdapterDecodeSet(block_size, windows, adapters)
    if tape is not None:
        return SpeculativeDecodeSet(block_size, tape)
    if compression is None or compression.cap_tokens is None:
        return DecodeSet(block_size, windows)
    return CappedDecodeSet(block_size, windows, compression.cap_tokens)


def _is_less(match: Match | None, planned: Match | None) -> bool:
    """Whether a hit has become smaller."""
    return match is not None and planned is not None and match.blocks < planned.blocks
