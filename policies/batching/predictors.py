"""Predictors of output length, for orders that want a job's size: `--policy sjf:predictor=NAME|module:Class`."""

from __future__ import annotations

from math import exp
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Protocol

from stepline.sim.engine.plugins import load_plugin
from stepline.traces.random_streams import stream

if TYPE_CHECKING:
    import numpy as np
    from stepline.sim.engine.sequence import Sequence

GROUP = "stepline.length_predictors"
"""Entry-point group of the named ones."""


class LengthPredictor(Protocol):
    """Guesses how many tokens a request will generate. One instance a replica.

    It may have `learn(seq)`, called when a sequence has ended (`generated_tokens` are final then), and `attach(view)`.
    """

    def predict(self, seq: Sequence) -> float:
        """Output tokens in all, >= 0."""
        ...


def make_predictor(text: str) -> LengthPredictor:
    """A fresh predictor by registered name or `module:Class`. Raises ConfigError."""
    found: LengthPredictor = load_plugin(GROUP, text)
    return found


class NoPrediction:
    """Nothing is known of outputs: jobs are ranked by their prompts alone."""

    def predict(self, seq: Sequence) -> float:
        """0."""
        return 0.0


class MaxTokensPrediction:
    """The client's own limit (`max_output_length` of the trace; else what the model's length leaves)."""

    def predict(self, seq: Sequence) -> float:
        """The limit."""
        return float(seq.max_output_tokens)


class HistoryPrediction:
    """The mean output of the requests of similar input length that this replica has finished (not of those turned away or given up).

    Bins are powers of two of the input length; a bin without history predicts the mean over all bins (0 before any
    request has finished).
    """

    def __init__(self) -> None:
        self._sums: dict[int, tuple[int, int]] = {}

    def learn(self, seq: Sequence) -> None:
        """Count a finished sequence; who was rejected or gave up says nothing of its length."""
        if seq.aborted or not seq.generated_tokens:
            return
        for key in (seq.input_tokens.bit_length(), 0):
            tokens, n = self._sums.get(key, (0, 0))
            self._sums[key] = (tokens + seq.generated_tokens, n + 1)

    def predict(self, seq: Sequence) -> float:
        """Mean of its bin."""
        tokens, n = self._sums.get(seq.input_tokens.bit_length()) or self._sums.get(0, (0, 1))
        return tokens / n


class OraclePrediction:
    """The truth, times a lognormal error of standard deviation `error` in the logarithm (0: none).

    Errors come from the stream ("length-predictor", block of indices) of `seed`: a request errs alike in every run.
    """

    BLOCK = 4096

    def __init__(self, error: float = 0.0, seed: int = 0) -> None:
        if not error >= 0:
            raise ValueError(f"error: got {error}, expected a number >= 0")
        self.error, self.seed = error, seed
        self._uniforms: dict[int, np.ndarray[Any, Any]] = {}
        self._view: Any = None

    def attach(self, view: Any) -> None:
        """The view that knows."""
        self._view = view

    def predict(self, seq: Sequence) -> float:
        """Truth with error."""
        truth = float(self._view.oracle_output_tokens(seq))
        if not self.error:
            return truth
        block, place = divmod(seq.index, self.BLOCK)
        if block not in self._uniforms:
            self._uniforms[block] = stream(self.seed, "length-predictor", block).random(self.BLOCK)
        uniform = min(max(float(self._uniforms[block][place]), 1e-12), 1 - 1e-12)
        return truth * exp(NormalDist(0.0, self.error).inv_cdf(uniform))
