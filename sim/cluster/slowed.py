"""A cost model whose steps all take longer: a straggler, or a pessimist's calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..cost.work import Progression, StepCost, StepWork

if TYPE_CHECKING:
    from ..cost.work import CostModel


class SlowedCost:
    """Every second of `inner` lasts `factor` (> 0) seconds; FLOPs and bytes are as they were."""

    def __init__(self, inner: CostModel, factor: float) -> None:
        self.inner = inner
        self.factor = factor

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the inner model."""
        return tuple(getattr(self.inner, "warnings", ()))

    @property
    def calibration(self) -> Any:
        """That of the inner model, if it has one."""
        return getattr(self.inner, "calibration", None)

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step."""
        return self.factor * self.inner.step_s(work)

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """Durations of the next pure-decode steps."""
        first_s, delta_s, n = self.inner.leap(work, growth, n_steps)
        return Progression(self.factor * first_s, self.factor * delta_s, n)

    def explain(self, work: StepWork) -> StepCost:
        """The breakdown of `step_s`."""
        cost = self.inner.explain(work)
        seconds = {kernel: self._scaled(bounds) for kernel, bounds in cost.seconds.items()}
        return StepCost(seconds, cost.flops, cost.hbm_bytes)

    def explain_many(self, columns: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], Any, Any]:
        """The breakdown of many steps."""
        seconds, flops, hbm_bytes = self.inner.explain_many(columns)
        return {kernel: self._scaled(bounds) for kernel, bounds in seconds.items()}, flops, hbm_bytes

    def _scaled(self, bounds: Mapping[str, Any]) -> dict[str, Any]:
        return {bound: self.factor * s for bound, s in bounds.items()}
