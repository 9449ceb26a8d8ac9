"""What waits, in order of a key: the container behind every queue order but FCFS."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence

SLACK = 64
"""Stale entries that are always tolerated before the heap is rebuilt."""


class Order(Protocol):
    """Ranks sequences; the smallest key is admitted first. It may have `attach(view)` and `ended(seq)`."""

    def key(self, seq: Sequence) -> Any:
        """Sort key of a sequence; taken when it joins the queue."""
        ...


class OrderedQueue:
    """A `WaitingQueue` in order of `order.key`, FCFS among equals.

    `append` and `remove` cost O(log n) amortised, reading the first k in order O(k log k).
    preempted_first  sequences that come back go before all others, as in vLLM's FCFS; else they are ranked like any
    patience_s       whoever has queued for longer goes before the rest, FCFS (None: nobody grows impatient)
    """

    def __init__(
        self, order: Order, *, preempted_first: bool = True, patience_s: float | None = None
    ) -> None:
        self.order = order
        self.preempted_first = preempted_first
        self.patience_s = patience_s
        self._heap: list[tuple[Any, int, Sequence]] = []
        self._entry: dict[Sequence, int] = {}
        self._joined: deque[tuple[float, int, Sequence]] = deque()
        self._joined_s: dict[int, float] = {}
        self._count = 0
        self._front = 0
        self._view: Any = None
        if hasattr(order, "ended"):
            self.ended = order.ended

    def attach(self, view: Any) -> None:
        """The view of the replica whose queue this is."""
        self._view = view
        attach = getattr(self.order, "attach", None)
        if attach is not None:
            attach(view)

    def append(self, seq: Sequence) -> None:
        """A request arrives."""
        self._push(seq, (1, self.order.key(seq)))

    def appendleft(self, seq: Sequence) -> None:
        """A preempted sequence returns."""
        if self.preempted_first:
            self._front -= 1
            self._push(seq, (0, self._front))
        else:
            self._push(seq, (1, self.order.key(seq)))

    def _push(self, seq: Sequence, rank: Any) -> None:
        self._count += 1
        self._entry[seq] = self._count
        heappush(self._heap, (rank, self._count, seq))
        if self.patience_s is not None:
            self._joined.append((self._view.now_s, self._count, seq))
            self._joined_s[self._count] = self._view.now_s

    def popleft(self) -> Sequence:
        """Take the first one out."""
        seq = self.first()
        self.remove(seq)
        return seq

    def first(self) -> Sequence:
        """The head of the queue, which must not be empty; what reading it in order begins with, for less."""
        if self.patience_s is not None:
            for seq in self._impatient(self._view.now_s - self.patience_s):
                return seq
        self._drop_stale()
        return self._heap[0][2]

    def remove(self, seq: Sequence) -> None:
        """Take any one out."""
        number = self._entry.pop(seq)
        if self._heap[0][1] == number:
            heappop(self._heap)
        elif len(self._heap) > 2 * len(self._entry) + SLACK:
            self._heap = [e for e in self._heap if self._entry.get(e[2]) == e[1]]
            heapify(self._heap)

    def __getitem__(self, index: SupportsIndex) -> Sequence:
        return self.first()

    def __contains__(self, seq: object) -> bool:
        return seq in self._entry

    def __len__(self) -> int:
        return len(self._entry)

    def __iter__(self) -> Iterator[Sequence]:
        since = -inf if self.patience_s is None else self._view.now_s - self.patience_s
        yield from self._impatient(since)
        self._drop_stale()
        heap, entry = self._heap, self._entry
        frontier = [(heap[0], 0)] if heap else []
        while frontier:  # the heap is a tree whose parents come first: walk it best first
            (_, number, seq), place = heappop(frontier)
            for child in (2 * place + 1, 2 * place + 2):
                if child < len(heap):
                    heappush(frontier, (heap[child], child))
            if entry.get(seq) == number and self._since(number) >= since:
                yield seq

    def _drop_stale(self) -> None:
        """Leave one that waits at the top of the heap."""
        heap, entry = self._heap, self._entry
        while heap and entry.get(heap[0][2]) != heap[0][1]:
            heappop(heap)

    def _impatient(self, since: float) -> Iterator[Sequence]:
        """Those who joined before `since`, in that order; read as far as they are asked for."""
        joined, entry = self._joined, self._entry
        while joined and entry.get(joined[0][2]) != joined[0][1]:
            self._joined_s.pop(joined.popleft()[1], None)
        for at_s, number, seq in joined:
            if at_s >= since:
                return
            if entry.get(seq) == number:
                yield seq

    def _since(self, number: int) -> float:
        return self._joined_s.get(number, inf)
