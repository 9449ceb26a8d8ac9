"""Costs that depend on one count alone (tokens of the step, or LM-head rows), tabulated once for the hot path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from . import forms, operators
from .calibration import KernelFit
from .forms import Array, Split
from .residual import ResidualGrid, gemm_features, moe_features
from .specs import GpuSpec, ModelSpec

FIRST_COUNTS = 1024
"""Counts tabulated at first."""

GROWTH = 1.25
"""What a table grows by at least: prompts of all lengths come one after another."""


MOE_LAUNCHES = 6
"""Kernels of one layer's routed experts: top-k softmax, block alignment, two GEMMs, the activation between them, the
weighted sum (vLLM `fused_experts`)."""


class Part(Protocol):
    """One operator, all its layers together, priced by a count of tokens (or rows)."""

    @property
    def kernel(self) -> str:
        """Kernel class (`work.KERNELS`) under which it is booked."""
        ...

    @property
    def launches(self) -> int:
        """Kernels that a step launches for it, all layers together."""
        ...

    def split(self, tokens: Array) -> Split:
        """Seconds by bound for each token count."""
        ...

    def amounts(self, tokens: Array) -> tuple[Array, Array]:
        """FLOPs and HBM bytes on one GPU for each token count."""
        ...


@dataclass(frozen=True, slots=True)
class LinearPart:
    """A linear layer: the GEMM form on (tokens, n, k), times the number of such layers."""

    linear: operators.Linear
    dtype: str
    fit: KernelFit
    gpu: GpuSpec
    peak: float
    residual: ResidualGrid | None = field(init=False)
    """That of the fit, for this layer's outputs and inputs: over rows alone."""

    def __post_init__(self) -> None:
        whole, layer = self.fit.residual, {"n": self.linear.n, "k": self.linear.k}
        object.__setattr__(self, "residual", whole and whole.at(layer))

    @property
    def kernel(self) -> str:
        """`gemm` or `lm_head`."""
        return self.linear.kernel

    @property
    def launches(self) -> int:
        """One a layer."""
        return self.linear.count

    def split(self, tokens: Array) -> Split:
        """See `Part.split`."""
        n, k = self.linear.n, self.linear.k
        bytes_ = self._bytes(tokens)
        split = forms.gemm(tokens, n, k, bytes_, self.fit.constants, self.gpu, self.peak)
        if self.residual is not None:
            log_factor = self.residual.log_factor(gemm_features(tokens, n, k))
            floor_s = np.maximum(
                operators.gemm_flops(tokens, n, k) / self.peak, bytes_ / self.gpu.hbm_bytes_per_s
            )
            split = forms.with_residual(split, log_factor, floor_s)
        return forms.scaled(split, self.linear.count)

    def amounts(self, tokens: Array) -> tuple[Array, Array]:
        """See `Part.amounts`."""
        flops = operators.gemm_flops(tokens, self.linear.n, self.linear.k)
        return flops * self.linear.count, self._bytes(tokens) * self.linear.count

    def _bytes(self, tokens: Array) -> Array:
        n, k = self.linear.n, self.linear.k
        weights = operators.gemm_weight_bytes(n, k, self.dtype)
        return np.asarray(weights + operators.gemm_activation_bytes(tokens, n, k))


@dataclass(frozen=True, slots=True)
class ElementwisePart:
    """Norm, rope, activation (and residual adds where not fused) of all layers, and the final norm."""

    model: ModelSpec
    tp: int
    fused: bool
    fit: KernelFit
    gpu: GpuSpec
    kernel: str = "elementwise"

    @property
    def launches(self) -> int:
        """Norms, rope, activation (and residual adds) of each layer, and the final norm."""
        return self._work(np.ones(1))[0]

    def split(self, tokens: Array) -> Split:
        """See `Part.split`."""
        launches, bytes_ = self._work(tokens)
        return forms.elementwise(bytes_, launches, self.fit.constants, self.gpu)

    def amounts(self, tokens: Array) -> tuple[Array, Array]:
        """See `Part.amounts`; the few FLOPs an element are not counted."""
        return np.zeros(tokens.shape), self._work(tokens)[1]

    def _work(self, tokens: Array) -> tuple[int, Array]:
        layer = operators.elementwise_bytes(self.model, tokens, self.tp, self.fused)
        layers = self.model.n_layers
        final_norm = 4 * operators.ACTIVATION_BYTES * self.model.hidden_size * tokens
        return layers * len(layer) + 1, np.asarray(layers * sum(layer.values()) + final_norm)


@dataclass(frozen=True, slots=True)
class CollectivePart:
    """`count` collectives a step over `world` GPUs of `bytes_per_token` bytes a token each."""

    count: int
    bytes_per_token: float
    world: int
    kind: str
    fit: KernelFit
    gpu: GpuSpec
    kernel: str = "comm"

    @property
    def launches(self) -> int:
        """One a collective."""
        return self.count

    def split(self, tokens: Array) -> Split:
        """See `Part.split`."""
        message = tokens * self.bytes_per_token
        split = forms.collective(message, self.world, self.fit.constants, self.gpu, self.kind)
        if self.fit.residual is not None:
            log_factor = self.fit.residual.log_factor({"message_bytes": message})
            split = forms.with_residual(split, log_factor, 0.0)
        return forms.scaled(split, self.count)

    def amounts(self, tokens: Array) -> tuple[Array, Array]:
        """See `Part.amounts`; wire bytes are no HBM bytes."""
        return np.zeros(tokens.shape), np.zeros(tokens.shape)


@dataclass(frozen=True, slots=True)
class MoePart:
    """The routed experts of all MoE layers on one GPU, as one fused kernel a layer.

    Without expert parallelism each of the `world` GPUs holds a slice of every expert and computes all tokens. With it
    (`ep` GPUs) each holds N/ep whole experts and computes its share of the routed copies; under skewed
    routing the busiest GPU sets the pace (`operators.busiest_share`). `tokens` are those of all data-parallel ranks.
    """

    model: ModelSpec
    world: int
    ep: int
    skew: float
    fit: KernelFit
    gpu: GpuSpec
    peak: float
    kernel: str = "moe"
    residual: ResidualGrid | None = field(init=False)
    """That of the fit, for these experts: over tokens alone."""

    def __post_init__(self) -> None:
        whole, shape = self.fit.residual, self._shape()
        experts = {"width": shape.expert, "n_experts": shape.n_experts, "top_k": shape.top_k}
        object.__setattr__(self, "residual", whole and whole.at(experts))

    @property
    def launches(self) -> int:
        """See `MOE_LAUNCHES`."""
        return MOE_LAUNCHES * self.model.n_moe_layers

    def split(self, tokens: Array) -> Split:
        """See `Part.split`."""
        shape = self._shape()
        flops, weights, activations = operators.moe_work(tokens, shape, self.model.weight_dtype)
        slots = activations * operators.spread_overhead(self.ep)
        length = shape.hidden + shape.expert
        split = forms.fused_moe(flops, weights, slots, length, self.fit.constants, self.gpu, self.peak)
        if self.residual is not None:
            features = moe_features(tokens, shape.expert, shape.n_experts, shape.top_k)
            floor_s = np.maximum(flops / self.peak, (weights + activations) / self.gpu.hbm_bytes_per_s)
            split = forms.with_residual(split, self.residual.log_factor(features), floor_s)
        return forms.scaled(split, self.model.n_moe_layers)

    def amounts(self, tokens: Array) -> tuple[Array, Array]:
        """See `Part.amounts`."""
        flops, weights, activations = operators.moe_work(tokens, self._shape(), self.model.weight_dtype)
        return flops * self.model.n_moe_layers, (weights + activations) * self.model.n_moe_layers

    def _shape(self) -> operators.MoeShape:
        moe = self.model.moe
        assert moe is not None  # the part exists for MoE models only
        width = operators.ceil_div(moe.expert_size * self.ep, self.world)
        return operators.MoeShape(
            hidden=self.model.hidden_size,
            expert=width,
            n_experts=moe.n_experts,
            top_k=moe.top_k,
            gated=moe.gated,
            ep=self.ep,
            skew=self.skew,
        )


class CountTable:
    """Seconds by count, as a plain list that grows as needed: the hot path is one index, and so is a breakdown.

    Args:
        parts: what is summed.
        pad: maps counts to the counts that are really computed (CUDA-graph padding).
    """

    def __init__(self, parts: Sequence[Part], pad: Callable[[Array], Array] | None = None) -> None:
        self.parts = tuple(parts)
        self.pad = pad
        self.seconds: list[float] = [0.0]
        self._known = _nothing(self.evaluate(np.ones(1)))

    def grow(self, count: int) -> None:
        """Make `seconds[count]` exist."""
        if count < len(self.seconds):
            return
        last = max(FIRST_COUNTS, count, int(GROWTH * len(self.seconds)))
        more = self.evaluate(np.arange(len(self.seconds), last + 1, dtype=float))
        total = sum(forms.total_s(split) for split in more[0].values())
        self.seconds.extend(np.asarray(total).tolist())
        self._known = _appended(self._known, more)

    def at(self, counts: Array) -> tuple[dict[str, Split], Array, Array]:
        """What `evaluate` gives, looked up; the counts are whole numbers."""
        index = counts.astype(np.intp)
        most = int(index.max(initial=0))
        if most >= len(self.seconds):
            self.grow(most)
        splits, flops, bytes_ = self._known
        looked_up = {k: {bound: s[index] for bound, s in split.items()} for k, split in splits.items()}
        return looked_up, flops[index], bytes_[index]

    def evaluate(self, counts: Array) -> tuple[dict[str, Split], Array, Array]:
        """Seconds by kernel and bound, FLOPs and HBM bytes at each count; zero where the count is zero."""
        some = counts > 0
        padded = self.pad(counts) if self.pad is not None else counts
        splits: dict[str, Split] = {}
        flops, bytes_ = np.zeros(counts.shape), np.zeros(counts.shape)
        for part in self.parts:
            book = splits.setdefault(part.kernel, {})
            for bound, seconds in part.split(padded).items():
                book[bound] = book.get(bound, 0.0) + np.where(some, seconds, 0.0)
            part_flops, part_bytes = part.amounts(counts)
            flops += np.where(some, part_flops, 0.0)
            bytes_ += np.where(some, part_bytes, 0.0)
        return splits, flops, bytes_


def _nothing(one: tuple[dict[str, Split], Array, Array]) -> tuple[dict[str, Split], Array, Array]:
    """The breakdown of no token, of the same bounds as that of one."""
    splits = {kernel: {bound: np.zeros(1) for bound in split} for kernel, split in one[0].items()}
    return splits, np.zeros(1), np.zeros(1)


def _appended(
    before: tuple[dict[str, Split], Array, Array], after: tuple[dict[str, Split], Array, Array]
) -> tuple[dict[str, Split], Array, Array]:
    splits = {
        kernel: {bound: np.concatenate((before[0][kernel][bound], s)) for bound, s in split.items()}
        for kernel, split in after[0].items()
    }
    return splits, np.concatenate((before[1], after[1])), np.concatenate((before[2], after[2]))


def graph_padding(sizes: Sequence[int], max_tokens: int) -> Callable[[Array], Array] | None:
    """Pads counts up to the next captured CUDA-graph size where a batch runs as a graph (count <=
    max_tokens).

    >>> graph_padding((1, 2, 4, 8), 8)(np.array([1.0, 3.0, 8.0, 9.0])).tolist()
    [1.0, 4.0, 8.0, 9.0]
    """
    if not sizes:
        return None
    captured = np.array(sorted(sizes), dtype=float)
    largest = min(float(captured[-1]), float(max_tokens or captured[-1]))

    def pad(counts: Array) -> Array:
        index = np.minimum(np.searchsorted(captured, counts), len(captured) - 1)
        return np.where((counts > 0) & (counts <= largest), captured[index], counts)

    return pad
