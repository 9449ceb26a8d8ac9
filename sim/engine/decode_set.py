"""All sequences that emit a token in a step, held as aggregates: a decode step is a few additions."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import ClassVar

from .sequence import DECODING, Sequence


class WindowSum:
    """Σ min(context, window) over a decode set; sequences beyond the window leave the growing group by a heap.

    With `offset` = KV tokens - step counter (constant while a sequence decodes), the context of the next step is
    offset + counter + 1, so the sum needs no update when the counter moves.
    """

    __slots__ = ("frozen", "growing", "heap", "offsets", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.offsets = 0
        self.growing = 0
        self.frozen = 0
        self.heap: list[tuple[int, int, int, Sequence]] = []

    def context_at(self, counter: int) -> int:
        """Tokens that the next step's attention reads, the token being computed included."""
        return self.offsets + self.growing * (counter + 1) + self.frozen * self.window

    def add(self, seq: Sequence, counter: int) -> None:
        """Take in a sequence whose `decode_offset` is set."""
        if seq.decode_offset + counter + 1 >= self.window:
            self.frozen += 1
            return
        self.growing += 1
        self.offsets += seq.decode_offset
        heappush(self.heap, (self.window - 1 - seq.decode_offset, seq.index, seq.epoch, seq))

    def remove(self, seq: Sequence, counter: int) -> None:
        """Let a sequence go (before its epoch changes)."""
        if seq.decode_offset + counter + 1 >= self.window:
            self.frozen -= 1
        else:
            self.growing -= 1
            self.offsets -= seq.decode_offset

    def settle(self, counter: int) -> None:
        """Freeze the sequences whose context has reached the window at this counter."""
        while self.heap and (self.heap[0][0] <= counter or self.heap[0][3].epoch != self.heap[0][2]):
            _, _, epoch, seq = heappop(self.heap)
            if seq.epoch == epoch:
                self.growing -= 1
                self.offsets -= seq.decode_offset
                self.frozen += 1

    def steps_to_bend(self, counter: int) -> int | None:
        """Steps until the next sequence saturates, or None."""
        while self.heap and self.heap[0][3].epoch != self.heap[0][2]:
            heappop(self.heap)
        return self.heap[0][0] - counter if self.heap else None


class DecodeSet:
    """Sequences of one cohort that decode together.

    counter      decode steps that this set has taken
    n            rows in the step, padding included
    n_live       sequences that still emit (static batching keeps finished rows as padding)
    since        counter when the set was last empty
    offsets      Σ decode_offset over the rows: context without a window = offsets + n * (counter + 1)
    inputs       Σ input tokens over the rows: context without a window - inputs is what they have emitted
    grows_evenly whether every context grows by a token a step
    borders[r]   sequences whose next KV token opens a new block in steps with counter % cycle == r; twice over,
                 so that the steps of any cycle are a slice
    plain        every context grows by one token a step
    emit_s       when the cohort last emitted; `late` [(time, count)]: members whose last token has another time
    """

    __slots__ = (
        "block_size", "borders", "capped", "counter", "cycle", "emit_s", "grows_evenly", "heap", "inputs", "late", "n",
        "n_growing", "n_live", "offsets", "plain", "since", "windows",
    )  # fmt: skip

    emits_one: ClassVar[bool] = True
    """One token a step for each."""

    def __init__(self, block_size: int, windows: tuple[int | None, ...] = (None,)) -> None:
        self.block_size = self.cycle = block_size
        self.windows = windows
        self.grows_evenly = windows == (None,)
        self.plain = type(self) is DecodeSet and windows == (None,)
        self.counter = 0
        self.since = 0
        self.emit_s = 0.0
        self.clear()

    def clear(self) -> None:
        """Drop every row (the padding at the end of a static batch)."""
        self.capped = [WindowSum(w) for w in self.windows if w is not None]
        self.borders = [0] * (2 * self.block_size)
        self.heap: list[tuple[int, int, int, Sequence]] = []
        self.late: list[tuple[float, int]] = []
        self.n = self.n_live = self.n_growing = self.offsets = self.inputs = 0

    # -- membership -------------------------------------------------------------------------------------------------

    def join(self, seq: Sequence, kv_tokens: int, steps_left: int, *, grows: bool = True) -> None:
        """Take in a sequence with `kv_tokens` in the cache that will finish after `steps_left` >= 1 decode steps.

        `grows`: its KV takes new blocks as it decodes (False: reserved in advance).
        """
        counter = self.counter
        seq.state = DECODING
        seq.decode_offset = offset = kv_tokens - counter
        seq.finish_step = finish_step = counter + steps_left
        heappush(self.heap, (finish_step, seq.index, seq.epoch, seq))
        self.offsets += offset
        self.inputs += seq.input_tokens
        if self.capped:
            for total in self.capped:
                total.add(seq, counter)
        if grows:  # `count_growing`, without the call
            size, borders = self.block_size, self.borders
            at = -offset % size
            borders[at] += 1
            borders[at + size] += 1
            self.n_growing += 1
        if not self.n_live:
            self.emit_s = seq.last_token_s
            self.late.clear()
            if not self.n:
                self.since = counter
        elif seq.last_token_s != self.emit_s:
            self.late.append((seq.last_token_s, 1))
        self.n += 1
        self.n_live += 1

    def count_growing(self, offset: int, by: int) -> None:
        """`by` more sequences of this offset take new blocks as they decode."""
        size, borders = self.block_size, self.borders
        at = -offset % size
        borders[at] += by
        borders[at + size] += by
        self.n_growing += by

    def leave(self, seq: Sequence, *, grows: bool = True, pad: bool = False) -> int:
        """Let a sequence go and return its KV tokens; with `pad` its row keeps being computed (static batching)."""
        offset = seq.decode_offset
        kv_tokens = offset + self.counter
        if self.late and kv_tokens == seq.computed_tokens and seq.last_token_s != self.emit_s:
            self._forget_late(seq.last_token_s)
        self.n_live -= 1
        if pad:
            return kv_tokens
        self.offsets -= offset
        self.inputs -= seq.input_tokens
        if self.capped:
            for total in self.capped:
                total.remove(seq, self.counter)
        if grows:
            self.count_growing(offset, -1)
        self.n -= 1
        seq.epoch += 1
        return kv_tokens

    def _forget_late(self, when_s: float) -> None:
        for i, (time_s, count) in enumerate(self.late):
            if time_s == when_s:
                self.late[i : i + 1] = [(time_s, count - 1)] if count > 1 else []
                return

    def kv_tokens(self, seq: Sequence) -> int:
        """Tokens that a member holds in the cache."""
        return seq.decode_offset + self.counter

    def opens_block(self, seq: Sequence) -> bool:
        """Whether a member's next step takes a new block."""
        return (seq.decode_offset + self.counter) % self.block_size == 0

    # -- what a step needs ------------------------------------------------------------------------------------------

    def context_tokens(self) -> tuple[float, ...]:
        """Context of the next step, per attention window."""
        full = self.offsets + self.n * (self.counter + 1)
        return self._per_window(full) if self.capped else (full,)

    def no_context(self) -> tuple[int, ...]:
        """Context of a step in which nobody decodes, per attention window."""
        return (0,) * len(self.windows)

    def generated_tokens(self) -> float:
        """Tokens that the rows have emitted before the next step."""
        return self.offsets + self.n * (self.counter + 1) - self.inputs

    def _per_window(self, full: int) -> tuple[int, ...]:
        capped = iter(self.capped)
        return tuple([full if w is None else next(capped).context_at(self.counter) for w in self.windows])

    def growth(self) -> tuple[float, ...]:
        """By how much each context grows per step."""
        if not self.capped:
            return (self.n,)
        capped = iter(self.capped)
        return tuple([self.n if w is None else next(capped).growing for w in self.windows])

    def blocks_in(self, n_steps: int) -> int:
        """New KV blocks that the next `n_steps` steps open."""
        size = self.block_size
        at = self.counter % size
        if n_steps < size:
            return sum(self.borders[at : at + n_steps])
        return n_steps // size * self.n_growing + sum(self.borders[at : at + n_steps % size])

    def steps_within(self, free_blocks: int, limit: int) -> int:
        """The most steps (<= limit) whose new blocks fit into `free_blocks` (negative: none)."""
        if free_blocks < 0:
            return 0
        most = self.n_growing * (limit // self.block_size + 1)
        if most <= free_blocks or self.blocks_in(limit) <= free_blocks:
            return limit
        steps = free_blocks // self.n_growing * self.block_size
        while self.blocks_in(steps + 1) <= free_blocks:
            steps += 1
        return steps

    def steps_to_change(self) -> int:
        """Steps until the first completion or the first context that reaches its window; the set is not empty."""
        heap = self.heap
        first = heap[0]
        while first[3].epoch != first[2]:
            heappop(heap)
            first = heap[0]
        steps = first[0] - self.counter
        if self.capped:
            bends = [bend for total in self.capped if (bend := total.steps_to_bend(self.counter)) is not None]
            return min([steps, *bends])
        return steps

    # -- time -------------------------------------------------------------------------------------------------------

    def advance(self, n_steps: int, end_s: float) -> bool:
        """Take `n_steps` steps, the last of which ends (and emits) at `end_s`; True if somebody may have finished."""
        self.counter = counter = self.counter + n_steps
        self.emit_s = end_s
        if self.capped:
            for total in self.capped:
                total.settle(counter)
        heap = self.heap
        return not heap or heap[0][0] <= counter

    def pop_finished(self, *, grows: bool = True, pad: bool = False) -> list[tuple[Sequence, int]]:
        """Let go those that have just emitted their last token, with their KV tokens, in order of arrival."""
        heap, counter = self.heap, self.counter
        out: list[tuple[Sequence, int]] = []
        if pad or self.late or not (grows and self.plain):
            while heap and heap[0][0] <= counter:
                _, _, epoch, seq = heappop(heap)
                if seq.epoch == epoch:
                    out.append((seq, self.leave(seq, grows=grows, pad=pad)))
            return out
        size, borders = self.block_size, self.borders
        while heap and heap[0][0] <= counter:  # `leave`, without the questions that have been answered
            _, _, epoch, seq = heappop(heap)
            if seq.epoch == epoch:
                seq.epoch = epoch + 1
                offset = seq.decode_offset
                self.offsets -= offset
                self.inputs -= seq.input_tokens
                at = -offset % size
                borders[at] -= 1
                borders[at + size] -= 1
                out.append((seq, offset + counter))
        gone = len(out)
        self.n_growing -= gone
        self.n -= gone
        self.n_live -= gone
        return out

    def generated(self, seq: Sequence, output_tokens: int) -> int:
        """Tokens that a member has emitted, given how many it will emit in all."""
        return output_tokens - (seq.finish_step - self.counter)
