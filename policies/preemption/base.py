"""What the victim rules share: what becomes of a victim's KV, and choosing by a score."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence

MODES = ("recompute", "swap")


class VictimRule:
    """Keeps how preemption works; a subclass says who is preempted.

    mode      `recompute`: the victim's blocks are freed (they stay in the prefix cache while there is room), its tokens
              are kept and computed again when it returns. `swap`: its KV goes to host memory and comes back. While
              swap space is full, victims are recomputed
    swap_gib  host memory for it, GiB a GPU (4: vLLM V0 `--swap-space`)
    copy_s    seconds per block beside its bytes over the PCIe rate, for engines that copy block by block (0)
    overlap   whether transfers run beside computation (False: vLLM V0 issues them before the step, on its stream)
    """

    def __init__(
        self,
        *,
        mode: str = "recompute",
        swap_gib: float = 4.0,
        copy_s: float = 0.0,
        overlap: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"mode: got {mode!r}, expected one of {', '.join(MODES)}")
        if not swap_gib > 0:
            raise ValueError(f"swap_gib: got {swap_gib}, expected a number > 0")
        if not copy_s >= 0:
            raise ValueError(f"copy_s: got {copy_s}, expected a number >= 0")
        self.mode, self.swap_gib, self.copy_s, self.overlap = mode, swap_gib, copy_s, overlap


class ScoredVictim(VictimRule):
    """Preempts the candidate with the highest `score`; each call looks at every running sequence once."""

    def score(self, view: Any, seq: Sequence) -> Any:
        """How well this sequence would do as the victim; any sort key."""
        raise NotImplementedError

    def victim(self, view: Any, candidates: Iterable[Sequence], blocks_needed: int) -> Sequence | None:
        """The first of the highest score: candidates come last admitted first."""
        return max(candidates, key=lambda seq: self.score(view, seq), default=None)
