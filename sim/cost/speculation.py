"""Speculative decoding: steps that verify γ drafted tokens of every sequence and draft the next ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .breakdown import explained
from .drafting import Draft, merged
from .roofline import RooflineCostModel
from .work import Progression, StepCost, StepWork


class SpeculativeCostModel:
    """The target's pass over γ + 1 tokens of each decoding sequence, then the draft (implements `work.CostModel`).

    `StepWork.n_decode` counts sequences; every one has γ + 1 rows of logits. What a draft gains at a batch size falls out:
    a small batch is bound by weights that a wider step reads no more of, a large one computes what it rejects.
    """

    def __init__(self, target: RooflineCostModel, draft: Draft) -> None:
        self.target, self.draft = target, draft

    @property
    def calibration(self) -> Any:
        """Of the target."""
        return self.target.calibration

    @property
    def warnings(self) -> tuple[str, ...]:
        """Those of the target."""
        return self.target.warnings

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step."""
        return self.target.step_s(self._verified(work)) + self.draft.step_s(work)

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """Steps while both the target's time and the draft's are linear."""
        target = self.target.leap(self._verified(work), growth, n_steps)
        draft = self.draft.leap(work, growth, target.n)
        return Progression(
            target.first_s + draft.first_s, target.delta_s + draft.delta_s, min(target.n, draft.n)
        )

    def _verified(self, work: StepWork) -> StepWork:
        return work._replace(logits_rows=work.logits_rows + (self.target.queries - 1) * work.n_decode)

    def explain(self, work: StepWork) -> StepCost:
        """The breakdown of one step."""
        return explained(self.explain_many, work)

    def explain_many(self, columns: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], Any, Any]:
        """The breakdown of many: target and draft under the kernels that they run."""
        n = np.asarray(columns["n_decode"], dtype=float)
        rows = np.asarray(columns["logits_rows"], dtype=float) + (self.target.queries - 1) * n
        target = self.target.explain_many({**columns, "logits_rows": rows})
        return merged(target, self.draft.explain_many(columns))
