"""KV that leaves the GPU when a sequence is preempted, and comes back: swapping over the host link."""

from __future__ import annotations

from typing import Protocol


class StepLink(Protocol):
    """Transfers that steps wait for; `stalled_s`: seconds that they have waited."""

    stalled_s: float

    @property
    def pending(self) -> bool:
        """Whether the next step has transfers to wait for."""
        ...

    def stretch(self, step_s: float) -> float:
        """How long the step lasts with the pending transfers, which are done then."""
        ...


class KvStore(Protocol):
    """Where the KV of a sequence that has left its seat may go, and what the next step then waits for."""

    @property
    def link(self) -> StepLink:
        """The way there and back."""
        ...

    def put(self, blocks: int, /) -> bool:
        """Take in `blocks`; False (and nothing happens): the sequence is recomputed later."""
        ...

    def take(self, blocks: int, /) -> None:
        """Give `blocks` back to the GPU."""
        ...

    def drop(self, blocks: int, /) -> None:
        """Forget `blocks`: their sequence has been aborted."""
        ...


class HostLink:
    """Transfers between GPU and host that a replica's next step has to wait for.

    block_s  seconds a KV block takes one way: bytes over the link's rate, plus `copy_s` where each block is copied
             on its own
    overlap  True: transfers run beside the step's computation, in and out at once (two copy engines), and the step
             ends when the longest of the three does; False: they come first, one after the other (vLLM V0 issues
             them on the stream that computes)
    """

    def __init__(self, block_s: float, *, overlap: bool = False) -> None:
        self.block_s = block_s
        self.overlap = overlap
        self.in_blocks = 0
        self.out_blocks = 0
        self.moved_blocks = 0
        self.stalled_s = 0.0

    @property
    def pending(self) -> bool:
        """Whether the next step has transfers to wait for."""
        return bool(self.in_blocks or self.out_blocks)

    def stretch(self, step_s: float) -> float:
        """How long the step lasts with the pending transfers, which are done then."""
        in_s, out_s = self.in_blocks * self.block_s, self.out_blocks * self.block_s
        self.moved_blocks += self.in_blocks + self.out_blocks
        self.in_blocks = self.out_blocks = 0
        lasts_s = max(step_s, in_s, out_s) if self.overlap else step_s + in_s + out_s
        self.stalled_s += lasts_s - step_s
        return lasts_s


class SwapSpace:
    """Room in host memory for the KV of preempted sequences."""

    def __init__(self, capacity_blocks: int, link: HostLink) -> None:
        self.capacity_blocks = capacity_blocks
        self.link = link
        self.used_blocks = 0

    def put(self, blocks: int) -> bool:
        """Take in `blocks`; False (and nothing happens) if there is no room: the sequence is recomputed later."""
        if not 0 < blocks <= self.capacity_blocks - self.used_blocks:
            return False
        self.used_blocks += blocks
        self.link.out_blocks += blocks
        return True

    def take(self, blocks: int) -> None:
        """Give `blocks` back to the GPU."""
        self.used_blocks -= blocks
        self.link.in_blocks += blocks

    def drop(self, blocks: int) -> None:
        """Forget `blocks`: their sequence has been aborted."""
        self.used_blocks -= blocks
