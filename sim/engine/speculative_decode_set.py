"""A decode set whose steps verify drafted tokens: each emits several tokens of a sequence, by the tape of acceptances."""

from __future__ import annotations

from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from .decode_set import DecodeSet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .acceptance import AcceptanceTape
    from .sequence import Sequence


class Path(NamedTuple):
    """What a member will emit: `tokens` in `steps` verifications from `place` of the tape on, joined at `counter`."""

    place: int
    counter: int
    kv_tokens: int
    tokens: int
    steps: int


class SpeculativeDecodeSet(DecodeSet):
    """As `DecodeSet`, in verification steps.

    A member's path is drawn when it joins: its steps, its tokens and blocks after each are exact. The sum of contexts
    takes each member to emit evenly over its steps, so that it stays linear between changes; its mean is exact.

    calendar[j] blocks that the j-th next step opens; `borders` is its first entry
    """

    __slots__ = ("base", "calendar", "paths", "rate", "tape", "width")

    emits_one: ClassVar[bool] = False

    def __init__(self, block_size: int, tape: AcceptanceTape) -> None:
        self.tape = tape
        self.width = tape.law.n_drafted + 1
        super().__init__(block_size)
        self.cycle = 1
        self.grows_evenly = False

    def clear(self) -> None:
        """Drop every row."""
        super().clear()
        self.borders = [0]  # `cycle` is 1
        self.calendar: deque[int] = deque()
        self.paths: dict[Sequence, Path] = {}
        self.base = self.rate = 0.0

    # -- membership -------------------------------------------------------------------------------------------------

    def join(self, seq: Sequence, kv_tokens: int, steps_left: int, *, grows: bool = True) -> None:
        """See `DecodeSet.join`; `steps_left` are the tokens left, which take fewer steps."""
        place = self.tape.place(seq.index, seq.generated_tokens)
        path = Path(place, self.counter, kv_tokens, steps_left, self.tape.steps(place, steps_left))
        super().join(seq, kv_tokens, path.steps, grows=False)
        self.paths[seq] = path
        self._count(path, 1)
        if grows:
            self.calendar.extend([0] * (path.steps - len(self.calendar)))
            self._open(path, 0, 1)
            self.n_growing += self.width

    def leave(self, seq: Sequence, *, grows: bool = True, pad: bool = False) -> int:
        """See `DecodeSet.leave`."""
        path = self.paths.pop(seq)
        done = self.counter - path.counter
        super().leave(seq, grows=False, pad=pad)
        self._count(path, -1)
        if not self.n:
            self.base = self.rate = 0.0
        if grows:
            self._open(path, done, -1)
            self.n_growing -= self.width
        return path.kv_tokens + self._emitted(path, done)

    def _count(self, path: Path, by: int) -> None:
        rate = path.tokens / path.steps
        self.rate += by * rate
        self.base += by * (path.kv_tokens - rate * path.counter)

    def _open(self, path: Path, done: int, by: int) -> None:
        """Enter (or strike out) the blocks that a path opens in steps after `done`."""
        for step in self._openings(path):
            if step >= done:
                self.calendar[step - done] += by
        self._turn()

    def _turn(self) -> None:
        self.borders[0] = self.calendar[0] if self.calendar else 0

    def _openings(self, path: Path) -> Iterator[int]:
        """Steps of the path (0: its first) in which a block is opened, once for each block."""
        size = self.block_size
        full = -(-path.kv_tokens // size) * size
        while full < path.kv_tokens + path.tokens:
            yield self.tape.steps(path.place, full - path.kv_tokens + 1) - 1
            full += size

    def _emitted(self, path: Path, done: int) -> int:
        return path.tokens if done >= path.steps else self.tape.tokens(path.place, done)

    def kv_tokens(self, seq: Sequence) -> int:
        """Tokens that a member holds in the cache."""
        path = self.paths[seq]
        return path.kv_tokens + self._emitted(path, self.counter - path.counter)

    def opens_block(self, seq: Sequence) -> bool:
        """Whether a member's next step takes a new block."""
        path = self.paths[seq]
        return self.counter - path.counter in list(self._openings(path))

    def generated(self, seq: Sequence, output_tokens: int) -> int:
        """Tokens that a member has emitted, given how many it will emit in all."""
        path = self.paths[seq]
        return output_tokens - path.tokens + self._emitted(path, self.counter - path.counter)

    # -- what a step needs ------------------------------------------------------------------------------------------

    def context_tokens(self) -> tuple[float, ...]:
        """Keys that the next verification reads, those of the drafted tokens included."""
        held = self.base + self.rate * self.counter
        return (held + self.n * self.width,)

    def generated_tokens(self) -> float:
        """In the mean over the members' paths, see `DecodeSet.generated_tokens`."""
        held = self.base + self.rate * self.counter
        return held + self.n - self.inputs

    def growth(self) -> tuple[float, ...]:
        """Tokens that a step emits, in the mean over the members' paths."""
        return (self.rate,)

    def blocks_in(self, n_steps: int) -> int:
        """New KV blocks that the next `n_steps` steps open."""
        return sum(islice(self.calendar, n_steps))

    def steps_within(self, free_blocks: int, limit: int) -> int:
        """The most steps (<= limit) whose new blocks fit into `free_blocks` (negative: none)."""
        for steps, opened in enumerate(islice(self.calendar, limit)):
            free_blocks -= opened
            if free_blocks < 0:
                return steps
        return limit if free_blocks >= 0 else 0

    # -- time -------------------------------------------------------------------------------------------------------

    def advance(self, n_steps: int, end_s: float) -> bool:
        """See `DecodeSet.advance`."""
        calendar = self.calendar
        for _ in range(min(n_steps, len(calendar))):
            calendar.popleft()
        self._turn()
        return super().advance(n_steps, end_s)
