"""Pipeline parallelism: stages that hold layers, micro-batches that follow each other through them.

A step of the group is a round: each running sequence passes once. Its work is cut into pp micro-batches, in flight together
as in vLLM V1 (batch queue of pp): ⌈n / pp⌉ of n decodes in the largest, ⌈s / pp⌉ of s chunks. A cohort may start again when
it has left the last stage, and none overtakes another, so that a round lasts pp times the slowest stage on the largest
micro-batch. A prompt of k token budgets enters as k micro-batches behind each other and lengthens the round by k - 1.
What a stage waits for the slowest one, and for micro-batches that are not there, is the bubble.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from stepline.traces.errors import ConfigError

from . import operators
from .breakdown import add_seconds, explained
from .forms import Array, Split
from .kernel_parts import KernelParts
from .roofline import RooflineCostModel
from .shares import largest_share, largest_shares
from .specs import ModelSpec
from .token_costs import CollectivePart, CountTable
from .weight_tensors import stage_layers
from .work import Progression, StepCost, StepWork

SENT_TENSORS = 2
"""A stage hands on the hidden states and the residual stream (vLLM `IntermediateTensors`)."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Equal stages of a pipeline: `count` of them; `last`: it has the LM head and sends nothing on."""

    cost: RooflineCostModel
    count: int
    last: bool


def stage_specs(model: ModelSpec, pp: int) -> list[ModelSpec]:
    """The layers of each stage as a model: dense layers of an MoE come first, windows are dealt evenly.

    Raises:
        ConfigError: more stages than layers.
    """
    specs, start = [], 0
    for layers in stage_layers(model.n_layers, pp):
        spec = replace(model, n_layers=layers, attention_windows=_windows(model, start, start + layers))
        if model.moe is not None:
            dense = min(max(model.moe.n_dense_layers - start, 0), layers)
            spec = replace(spec, moe=replace(model.moe, n_dense_layers=dense))
        specs.append(spec)
        start += layers
    return specs


def _windows(model: ModelSpec, start: int, end: int) -> tuple[tuple[int | None, int], ...]:
    """Layers start..end by window, each window's spread evenly over the model."""

    def dealt(count: int) -> int:
        return round(count * end / model.n_layers) - round(count * start / model.n_layers)

    *others, (window, _) = model.windows
    groups = [(w, dealt(count)) for w, count in others]
    return (*groups, (window, end - start - sum(count for _, count in groups)))


def send_table(kernels: KernelParts) -> CountTable:
    """Seconds of handing a micro-batch to the next stage, by its tokens: each GPU of the TP group sends its share.

    Priced as one shot of two GPUs, with the constants of the all-gather (half of its buffer crosses the link).
    """
    sent = SENT_TENSORS * operators.ACTIVATION_BYTES * kernels.model.hidden_size / kernels.tp
    fit = kernels.collective_fit("send_recv", 2)
    return CountTable([CollectivePart(1, 2.0 * sent, 2, "send_recv", fit, kernels.gpu)])


class PipelineCostModel:
    """Prices rounds of a pipeline (implements `work.CostModel`).

    Seconds by kernel, FLOPs and bytes are those of the mean GPU. Host time is spent on each micro-batch by each stage.

    Args:
        stages: from first to last, equal ones once.
        budget_tokens: of one micro-batch (`--max-num-batched-tokens`).
    """

    def __init__(self, stages: list[Stage], budget_tokens: int) -> None:
        self.stages, self.budget_tokens = stages, budget_tokens
        self.pp = sum(stage.count for stage in stages)
        self._send = send_table(stages[0].cost.kernels)

    @property
    def calibration(self) -> Any:
        """Of every stage."""
        return self.stages[0].cost.calibration

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of all stages, each once."""
        return tuple(dict.fromkeys([text for stage in self.stages for text in stage.cost.warnings]))

    # --- one number

    def step_s(self, work: StepWork) -> float:
        """Seconds of one round."""
        micro = self.micro_batch(work)
        slowest = max([self._stage_s(stage, micro) for stage in self.stages])
        return (self.pp + self._follow_ups(work.prefill_tokens, work.prefill_seqs)) * slowest

    def _stage_s(self, stage: Stage, micro: StepWork) -> float:
        if stage.last:
            return stage.cost.step_s(micro)
        self._send.grow(micro.new_tokens)
        return stage.cost.step_s(micro._replace(logits_rows=0)) + self._send.seconds[micro.new_tokens]

    def _follow_ups(self, tokens: int, seqs: int) -> int:
        """Micro-batches by which the chunks of a prompt of mean length follow its first."""
        return max(-(-tokens // (seqs * self.budget_tokens)) - 1, 0) if seqs else 0

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """Rounds of decodes while the slowest stage stays the slowest, and linear."""
        micro = self.micro_batch(work)
        share = micro.n_decode / work.n_decode
        grown: Any = tuple([share * g for g in growth])
        lines = [self._stage_leap(stage, micro, grown, n_steps) for stage in self.stages]
        first = max(lines, key=lambda line: (line.first_s, line.delta_s))
        n = min(line.n for line in lines)
        for line in lines:
            if line.delta_s > first.delta_s:
                n = min(n, int((first.first_s - line.first_s) // (line.delta_s - first.delta_s)) + 1)
        return Progression(self.pp * first.first_s, self.pp * first.delta_s, n)

    def _stage_leap(
        self, stage: Stage, micro: StepWork, growth: tuple[float, ...], n_steps: int
    ) -> Progression:
        if stage.last:
            return stage.cost.leap(micro, growth, n_steps)
        self._send.grow(micro.n_decode)
        line = stage.cost.leap(micro._replace(logits_rows=0), growth, n_steps)
        return line._replace(first_s=line.first_s + self._send.seconds[micro.n_decode])

    def micro_batch(self, work: StepWork) -> StepWork:
        """The largest micro-batch of a round."""
        pieces = max(work.prefill_seqs, -(-work.prefill_tokens // self.budget_tokens))
        return largest_share(work, self.pp, pieces)

    # --- many

    def explain(self, work: StepWork) -> StepCost:
        """The breakdown of one round."""
        return explained(self.explain_many, work)

    def explain_many(self, columns: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], Any, Any]:
        """The breakdown of many rounds; bubbles are communication (a stage waits in its receive), bound `bubble`."""
        get = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
        micro = largest_shares(get, self.pp, self._pieces(get))
        shape = micro["n_decode"].shape
        seconds: dict[str, Split] = {"comm": {}}
        flops, moved, slowest = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        busy = self._occupied(get) / self.pp
        for stage in self.stages:
            rows = micro["logits_rows"] if stage.last else np.zeros(shape)
            split, f, b = stage.cost.explain_many({**micro, "logits_rows": rows})
            books = {k: dict(s) for k, s in split.items()}
            if not stage.last:
                sent = self._send.at(micro["prefill_tokens"] + micro["n_decode"])[0]["comm"]["comm"]
                books.setdefault("comm", {})["comm"] = books.get("comm", {}).get("comm", 0.0) + sent
            slowest = np.maximum(slowest, sum(s for book in books.values() for s in book.values()))
            times = stage.count * busy
            add_seconds(seconds, books, times)
            flops, moved = flops + times * f, moved + times * b
        follow = np.maximum(
            np.ceil(get["prefill_tokens"] / np.maximum(get["prefill_seqs"] * self.budget_tokens, 1.0)) - 1.0,
            0.0,
        )
        spent = sum((s for book in seconds.values() for s in book.values()), np.zeros(shape))
        seconds["comm"]["bubble"] = np.maximum((self.pp + follow) * slowest - spent, 0.0)
        return seconds, flops, moved

    def _occupied(self, get: Mapping[str, Array]) -> Array:
        """Micro-batches of a round that have work."""
        return np.minimum(np.maximum(self._pieces(get), get["n_decode"]), float(self.pp))

    def _pieces(self, get: Mapping[str, Array]) -> Array:
        return np.maximum(get["prefill_seqs"], np.ceil(get["prefill_tokens"] / self.budget_tokens))


def pipeline(model: ModelSpec, pp: int, budget_tokens: int, make: Any) -> PipelineCostModel:
    """A pipeline of `pp` stages; `make(spec)` gives the roofline of a stage's layers.

    Raises:
        ConfigError: fewer than two stages, or more than layers.
    """
    if pp < 2:
        raise ConfigError(f"pp: got {pp}, expected at least 2 stages")
    *before, last = stage_specs(model, pp)
    kinds = Counter(before)
    stages = [Stage(make(spec), count, last=False) for spec, count in kinds.items()]
    return PipelineCostModel([*stages, Stage(make(last), 1, last=True)], budget_tokens)
