"""Shortest prefix miss first: who needs least computed, because most of it is cached, goes first."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, SupportsIndex

from .ordered import OrderedPolicy

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class PrefixQueue:
    """A `WaitingQueue` whose oldest `window` members are read in order of the prompt tokens that the cache lacks now.

    The cache changes with every step, so ranks are taken when they are read: O(window) look-ups a plan. Beyond the
    window the order is FCFS.
    """

    def __init__(self, window: int) -> None:
        self.window = window
        self._waiting: dict[Sequence, None] = {}
        self._returned: list[Sequence] = []
        self._view: Any = None

    def attach(self, view: Any) -> None:
        """Knows the cache."""
        self._view = view

    def append(self, seq: Sequence) -> None:
        """A request arrives."""
        self._waiting[seq] = None

    def appendleft(self, seq: Sequence) -> None:
        """A preempted sequence goes before all others."""
        self._returned.append(seq)

    def popleft(self) -> Sequence:
        """Take the first one out."""
        seq = self[0]
        self.remove(seq)
        return seq

    def remove(self, seq: Sequence) -> None:
        """Take any one out."""
        if seq in self._waiting:
            del self._waiting[seq]
        else:
            self._returned.remove(seq)

    def __getitem__(self, index: SupportsIndex) -> Sequence:
        return next(iter(self))

    def __contains__(self, seq: object) -> bool:
        return seq in self._waiting or seq in self._returned

    def __len__(self) -> int:
        return len(self._waiting) + len(self._returned)

    def __iter__(self) -> Iterator[Sequence]:
        yield from reversed(self._returned)
        oldest = list(islice(self._waiting, self.window))
        missing = {seq: seq.prompt_tokens - self._view.cached_tokens(seq) for seq in oldest}
        yield from sorted(oldest, key=missing.__getitem__)
        yield from islice(self._waiting, self.window, None)


class PrefixFirstPolicy(OrderedPolicy):
    """Waiting prompts join in order of the tokens they miss in the prefix cache, fewest first.

    `window`: how many of the oldest waiting requests are ranked; ranking is what it costs. Source: SGLang's
    `schedule_policy=lpm` (longest prefix match; RadixAttention, Zheng et al. 2024), which falls back to FCFS while more than
    128 requests wait.
    """

    def __init__(self, *, window: int = 32) -> None:
        super().__init__()
        if window < 1:
            raise ValueError(f"window: got {window}, expected an integer >= 1")
        self.window = window

    def make_queue(self) -> PrefixQueue:  # type: ignore[override]  # another container with the same methods
        """A queue that looks into the cache."""
        return PrefixQueue(self.window)
