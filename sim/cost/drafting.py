"""What proposes the tokens that a step verifies: seconds, FLOPs and bytes of a draft, and the memory it takes.

All draft γ tokens a sequence after the target's own pass (vLLM V1 runs the proposer within the step). A draft model and an
EAGLE head first run over everything the target has just computed (prompt chunks and verified tokens: vLLM's padded drafter
batch), then γ - 1 times over one token a sequence. Medusa's heads run once. An n-gram look-up costs no GPU time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from . import operators
from .breakdown import add_seconds
from .calibration import Calibration
from .forms import Array, Split
from .memory_ledger import kv_block_bytes
from .parameters import plain_bytes
from .roofline import RooflineCostModel
from .sampler import GREEDY
from .specs import Dtype, EngineProfile, GpuSpec, ModelSpec
from .token_costs import CountTable
from .weight_tensors import layer_tensors, weight_memory
from .work import Progression, StepWork

Breakdown = tuple[Mapping[str, Split], Array, Array]


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory of a draft on one GPU: bytes of its weights, and of its keys and values in a KV block."""

    weights_bytes: float
    block_bytes: float


class Draft(Protocol):
    """Proposes tokens for every decoding sequence of a step. `work.n_decode` counts sequences."""

    def step_s(self, work: StepWork) -> float:
        """Seconds after the target's pass."""
        ...

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """See `work.CostModel.leap`."""
        ...

    def explain_many(self, columns: Mapping[str, Any]) -> Breakdown:
        """See `work.CostModel.explain_many`."""
        ...


class NoDraft:
    """An n-gram look-up in the sequence's own text (prompt look-up decoding): host work beside the GPU's."""

    def step_s(self, work: StepWork) -> float:
        """0."""
        return 0.0

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """0, as long as asked."""
        return Progression(0.0, 0.0, n_steps)

    def explain_many(self, columns: Mapping[str, Any]) -> Breakdown:
        """Nothing."""
        nothing = np.zeros(len(columns["n_decode"]))
        return {}, nothing, nothing.copy()


class ModelDraft:
    """A model, or an EAGLE head as a model of one layer, that drafts token by token."""

    def __init__(self, first: RooflineCostModel, next_: RooflineCostModel, n_drafted: int) -> None:
        self.first, self.next = first, next_
        self.n_drafted = n_drafted

    def step_s(self, work: StepWork) -> float:
        """One pass over what the target computed, γ - 1 over a token a sequence."""
        seconds = self.first.step_s(work)
        passes = self.n_drafted - 1
        if passes and work.n_decode:
            seconds += passes * self.next.step_s(self._later(work))
        return seconds

    @staticmethod
    def _later(work: StepWork) -> StepWork:
        """A pass over one token a sequence, at the context of the verification."""
        n = work.n_decode
        return StepWork(n_decode=n, context_tokens=work.context_tokens, logits_rows=n)

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """Both kinds of pass, while both stay linear."""
        first = self.first.leap(work, growth, n_steps)
        passes = self.n_drafted - 1
        if not passes:
            return first
        later = self.next.leap(self._later(work), growth, n_steps)
        return Progression(
            first.first_s + passes * later.first_s,
            first.delta_s + passes * later.delta_s,
            min(first.n, later.n),
        )

    def explain_many(self, columns: Mapping[str, Any]) -> Breakdown:
        """Of both."""
        seconds, flops, moved = self.first.explain_many(columns)
        passes = self.n_drafted - 1
        n = np.asarray(columns["n_decode"], dtype=float)
        if not passes or not n.any():
            return seconds, flops, moved
        nothing = np.zeros(n.shape)
        later = dict.fromkeys(
            ("prefill_tokens", "prefill_seqs", "attention_pairs", "prefill_kv_tokens"), nothing
        )
        contexts = {k: v for k, v in columns.items() if k.startswith("context_tokens")}
        more = self.next.explain_many({**later, **contexts, "n_decode": n, "logits_rows": n})
        times = np.where(n > 0, float(passes), 0.0)
        return merged((seconds, flops, moved), more, times)


class HeadsDraft:
    """Medusa's heads (Cai et al. 2024, section 2.1): each a residual D x D layer and an LM head of its own."""

    def __init__(self, table: CountTable) -> None:
        self.table = table

    def step_s(self, work: StepWork) -> float:
        """All heads on the last token of each sequence."""
        self.table.grow(work.n_decode)
        return self.table.seconds[work.n_decode]

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """The same each step."""
        return Progression(self.step_s(work), 0.0, n_steps)

    def explain_many(self, columns: Mapping[str, Any]) -> Breakdown:
        """By kernel."""
        return self.table.at(np.asarray(columns["n_decode"], dtype=float))


def merged(one: Breakdown, other: Breakdown, times: Any = 1.0) -> Breakdown:
    """The breakdown of both, the other `times` over."""
    seconds = {kernel: dict(split) for kernel, split in one[0].items()}
    add_seconds(seconds, other[0], times)
    return seconds, one[1] + other[1] * times, one[2] + other[2] * times


# --- the kinds of draft


def drafting_engine(engine: EngineProfile) -> EngineProfile:
    """The engine of a draft's passes: the kernels and graphs of the target's, no host time (the step's own covers it)."""
    return replace(
        engine, step_host_s=0.0, step_host_per_seq_s=0.0, prompt_launch_s=0.0, tp_step_host_s=0.0,
        step_gpu_s=0.0, tp_step_gpu_s=0.0, generated_token_s=0.0,
    )  # fmt: skip


def model_draft(
    draft: ModelSpec,
    gpu: GpuSpec,
    calibration: Calibration,
    engine: EngineProfile,
    *,
    n_drafted: int,
    extra_linears: tuple[operators.Linear, ...] = (),
    **options: Any,
) -> ModelDraft:
    """A draft that is a model of its own, greedy as vLLM's proposers are; `options` (tp, kv_dtype, ...) as the target's."""
    own = replace(draft, sampling=GREEDY)
    first, later = (
        RooflineCostModel(
            own,
            gpu,
            calibration,
            engine=drafting_engine(engine),
            queries=queries,
            extra_linears=extra_linears,
            **options,
        )
        for queries in (n_drafted + 1, 1)
    )
    return ModelDraft(first, later, n_drafted)


def eagle_head(target: ModelSpec) -> ModelSpec:
    """The layer of an EAGLE head (Li et al. 2024): one dense decoder layer of the target's width, its LM head."""
    return replace(
        target,
        name=f"{target.name}-eagle",
        n_layers=1,
        attention_windows=(),
        moe=None,
        ffn_size=target.ffn_size or 4 * target.hidden_size,
        extra_params=0,
        vision=None,
        tie_embeddings=True,
    )


def eagle_projection(target: ModelSpec) -> operators.Linear:
    """What joins the target's hidden state and the token's embedding: 2 D -> D (EAGLE, figure 6)."""
    return operators.Linear("eagle_fc", target.hidden_size, 2 * target.hidden_size, 1)


def medusa_draft(cost: RooflineCostModel, n_drafted: int) -> HeadsDraft:
    """Heads priced with the kernels of the target's cost model."""
    width = cost.model.hidden_size
    residual = operators.Linear("medusa_block", width, width, n_drafted)
    head = replace(operators.head_linear(cost.model, cost.tp), count=n_drafted)
    return HeadsDraft(CountTable([cost.kernels.linear(residual), cost.kernels.linear(head)]))


def footprint_of_model(draft: ModelSpec, *, tp: int, kv_dtype: Dtype, block_size: int) -> Footprint:
    """A draft model's, its own vocabulary tables included."""
    block = kv_block_bytes(draft, tp=tp, kv_dtype=kv_dtype, block_size=block_size)
    return Footprint(sum(weight_memory(draft, tp=tp)), block)


def footprint_of_eagle(target: ModelSpec, *, tp: int, kv_dtype: Dtype, block_size: int) -> Footprint:
    """An EAGLE head's: a layer and the projection; embedding and LM head are the target's."""
    head = eagle_head(target)
    layers = sum(t.copies * t.size_bytes for t in layer_tensors(head, tp))
    projection = 2 * target.hidden_size**2 * plain_bytes(target.weight_dtype)
    block = kv_block_bytes(head, tp=tp, kv_dtype=kv_dtype, block_size=block_size)
    return Footprint(layers + projection, block)


def footprint_of_heads(target: ModelSpec, *, tp: int, n_drafted: int) -> Footprint:
    """Medusa heads': γ (D² + D V) parameters."""
    width = target.hidden_size
    params = n_drafted * (width**2 + width * target.vocab_size / tp)
    return Footprint(params * plain_bytes(target.weight_dtype), 0.0)
