"""Shortest job first, and shortest remaining processing time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ordered import OrderedPolicy
from .predictors import LengthPredictor, OraclePrediction, make_predictor

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class SizeOrder:
    """Ranks by the tokens that a sequence has still to compute or (as predicted) to generate."""

    def __init__(self, predictor: LengthPredictor) -> None:
        self.predictor = predictor
        self._view: Any = None
        if hasattr(predictor, "learn"):
            self.ended = predictor.learn

    def attach(self, view: Any) -> None:
        """Knows progress."""
        self._view = view
        attach = getattr(self.predictor, "attach", None)
        if attach is not None:
            attach(view)

    def key(self, seq: Sequence) -> float:
        """Remaining tokens; a sequence beyond its prediction has at least one to go."""
        done = self._view.generated_tokens(seq)
        rest = self.predictor.predict(seq) - done
        return float(seq.prompt_tokens - seq.computed_tokens + max(rest, 1.0))


class SjfPolicy(OrderedPolicy):
    """Waiting prompts join shortest first: by prompt, and by output as far as `predictor` knows it.

    `predictor`: `none` (by prompt), `max-tokens`, `history`, or `module:Class` (see `predictors`). `patience_s`: who has
    queued for longer goes first (without it long jobs may starve).
    """

    def __init__(self, *, predictor: str = "none", patience_s: float | None = None) -> None:
        super().__init__(patience_s=patience_s)
        self.predictor = predictor
        make_predictor(predictor)  # an unknown name shows now

    def make_order(self) -> SizeOrder:
        """By size."""
        return SizeOrder(make_predictor(self.predictor))


class SrptPolicy(SjfPolicy):
    """Shortest remaining processing time: as `sjf`, and a shorter job takes the seat and KV of the longest running one.

    The displaced sequence keeps its tokens and is ranked by what remains (Schrage & Miller 1966).
    """

    preempted_first = False
    preemptive = True


class OracleSjfPolicy(OrderedPolicy):
    """`sjf` by true output length, with a lognormal error of `error` in the logarithm (0: none) under `seed`."""

    oracle = True

    def __init__(self, *, error: float = 0.0, seed: int = 0, patience_s: float | None = None) -> None:
        super().__init__(patience_s=patience_s)
        self.error, self.seed = error, seed
        OraclePrediction(error, seed)

    def make_order(self) -> SizeOrder:
        """By true size."""
        return SizeOrder(OraclePrediction(self.error, self.seed))


class OracleSrptPolicy(OracleSjfPolicy):
    """`srpt` by true output length, with an error as `oracle-sjf`."""

    preempted_first = False
    preemptive = True
