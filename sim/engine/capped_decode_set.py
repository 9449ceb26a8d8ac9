"""A decode set whose sequences hold at most so many tokens: token-level KV compression."""

from __future__ import annotations

from heapq import heappop, heappush

from .decode_set import DecodeSet
from .sequence import Sequence


class CappedDecodeSet(DecodeSet):
    """As `DecodeSet`; a sequence that holds `cap` tokens takes no more blocks and reads no longer context.

    It leaves the growing group through a heap keyed by the counter at which it reaches the cap.
    """

    __slots__ = ("cap", "full_at")

    def __init__(self, block_size: int, windows: tuple[int | None, ...], cap: int) -> None:
        self.cap = cap
        capped = tuple([cap if w is None else min(w, cap) for w in windows])
        super().__init__(block_size, capped)

    def clear(self) -> None:
        """Drop every row."""
        super().clear()
        self.full_at: list[tuple[int, int, int, Sequence]] = []

    def join(self, seq: Sequence, kv_tokens: int, steps_left: int, *, grows: bool = True) -> None:
        """See `DecodeSet.join`; `kv_tokens` are those held."""
        grows = grows and kv_tokens < self.cap
        super().join(seq, kv_tokens, steps_left, grows=grows)
        if grows:
            heappush(self.full_at, (self.cap - seq.decode_offset, seq.index, seq.epoch, seq))

    def leave(self, seq: Sequence, *, grows: bool = True, pad: bool = False) -> int:
        """See `DecodeSet.leave`; returns the tokens held."""
        growing = grows and seq.decode_offset + self.counter < self.cap
        return min(super().leave(seq, grows=growing, pad=pad), self.cap)

    def kv_tokens(self, seq: Sequence) -> int:
        """Tokens that a member holds."""
        return min(super().kv_tokens(seq), self.cap)

    def opens_block(self, seq: Sequence) -> bool:
        """Whether a member's next step takes a new block."""
        return super().kv_tokens(seq) < self.cap and super().opens_block(seq)

    def steps_to_change(self) -> int:
        """Steps until the first completion, or the first sequence that is full."""
        full_at = self.full_at
        while full_at and full_at[0][3].epoch != full_at[0][2]:
            heappop(full_at)
        steps = super().steps_to_change()
        return min(steps, full_at[0][0] - self.counter) if full_at else steps

    def advance(self, n_steps: int, end_s: float) -> bool:
        """See `DecodeSet.advance`; whoever is full stops growing."""
        may_finish = super().advance(n_steps, end_s)
        full_at = self.full_at
        while full_at and full_at[0][0] <= self.counter:
            _, _, epoch, seq = heappop(full_at)
            if seq.epoch == epoch:
                self.count_growing(seq.decode_offset, -1)
        return may_finish


def windowed_pairs(done: int, chunk: int, window: int) -> int:
    """Query-key pairs of a chunk after `done` tokens when each token sees at most `window`, itself included.

    >>> windowed_pairs(0, 3, 10), windowed_pairs(5, 2, 4), windowed_pairs(2, 3, 4)
    (6, 8, 11)
    """
    rising = max(0, min(chunk, window - done))  # tokens that still see all before them
    return rising * done + rising * (rising + 1) // 2 + (chunk - rising) * window
