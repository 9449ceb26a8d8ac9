"""LoRA adapters beside the linear layers: parameters, memory of the slots, seconds of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from . import forms, operators
from .breakdown import add_seconds, explained
from .parameters import plain_bytes
from .roofline import RooflineCostModel
from .specs import ModelSpec
from .work import Progression, StepCost, StepWork, context_column

KERNELS_PER_LAYER = 2
"""Kernels of one adapted linear layer: shrink (D -> r) and expand (r -> N), over all adapters of the batch (Punica,
Chen et al. 2023; vLLM `lora_shrink`, `lora_expand`)."""

_SLICES = {"qkv": 3, "ffn_up": 2, "shared_up": 2, "q_kv_down": 2}
"""Projections that one fused layer holds, each with an A matrix of its own."""


class AdaptedLayer(NamedTuple):
    """A linear layer with adapters: n outputs, k inputs on one GPU, `slices` A matrices, `layers` of them."""

    n: int
    k: int
    slices: int
    layers: int

    def params(self, rank: int) -> int:
        """A: slices · k r; B: n r; all layers."""
        return self.layers * rank * (self.slices * self.k + self.n)


def adapted_layers(model: ModelSpec, tp: int = 1) -> tuple[AdaptedLayer, ...]:
    """Attention, dense FFN and shared experts; routers, routed experts and the LM head carry no adapters."""
    linears = (*operators.attention_linears(model, tp), *operators.ffn_linears(model, tp))
    gated = {"qkv", "q_kv_down"} if not model.gated_ffn else set(_SLICES)
    return tuple(
        AdaptedLayer(x.n, x.k, _SLICES[x.name] if x.name in gated else 1, x.count)
        for x in linears
        if x.name != "router"
    )


def adapter_params(model: ModelSpec, rank: int, tp: int = 1) -> int:
    """Parameters of one adapter of all layers on one GPU.

    >>> from .catalogue import load_model
    >>> adapter_params(load_model("llama-3.1-8b"), 16)
    41943040
    """
    return sum(layer.params(rank) for layer in adapted_layers(model, tp))


def adapter_bytes(model: ModelSpec, rank: int, tp: int = 1) -> float:
    """Bytes of one adapter on one GPU, bf16."""
    return adapter_params(model, rank, tp) * plain_bytes(model.weight_dtype)


class LoraCostModel:
    """A roofline whose steps also run the adapters in use (implements `work.CostModel`).

    The last of `StepWork.context_tokens` is how many there are. A step with any: launches · t0 + max(compute, memory);
    all its tokens pass through shrink and expand (each adapter's weights are read once, an output is read and written
    again). A step with none skips the kernels, as vLLM does. Ranks are taken to be the largest.
    """

    def __init__(self, inner: RooflineCostModel, rank: int) -> None:
        self.inner = inner
        model, tp = inner.model, inner.tp
        layers = adapted_layers(model, tp)
        small, gemm = (
            inner.kernels.fit("elementwise").constants,
            inner.kernels.fit("gemm_bf16", "gemm").constants,
        )
        gpu = inner.gpu
        self.flops_per_token = 2.0 * adapter_params(model, rank, tp)
        self.bytes_per_adapter = adapter_bytes(model, rank, tp)
        self.bytes_per_token = operators.ACTIVATION_BYTES * sum(
            x.layers * (x.k + 2 * x.slices * rank + 2 * x.n) for x in layers
        )
        self.flops_per_s = gemm["compute_eff"] * gpu.peak_flops["bf16"]
        self.bytes_per_s = small["memory_eff"] * gpu.hbm_bytes_per_s
        self.launch_s = KERNELS_PER_LAYER * sum(x.layers for x in layers) * small["t0_s"]

    @property
    def calibration(self) -> Any:
        """Of the model without adapters."""
        return self.inner.calibration

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the model without adapters."""
        return self.inner.warnings

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step."""
        *contexts, adapters = work.context_tokens
        return self.inner.step_s(work._replace(context_tokens=tuple(contexts))) + self._s(
            work.new_tokens, adapters
        )

    def _s(self, tokens: int, adapters: float) -> float:
        if not adapters:
            return 0.0
        moved = tokens * self.bytes_per_token + adapters * self.bytes_per_adapter
        return self.launch_s + max(tokens * self.flops_per_token / self.flops_per_s, moved / self.bytes_per_s)

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """Adapters stay while nobody comes or goes: the same seconds more each step."""
        *contexts, adapters = work.context_tokens
        plain = self.inner.leap(work._replace(context_tokens=tuple(contexts)), growth[:-1], n_steps)
        return plain._replace(first_s=plain.first_s + self._s(work.new_tokens, adapters))

    def explain(self, work: StepWork) -> StepCost:
        """The breakdown of one step."""
        return explained(self.explain_many, work)

    def explain_many(self, columns: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], Any, Any]:
        """The breakdown of many; the adapters' kernels are booked with the GEMMs."""
        last = context_column(len(self.inner.model.windows))
        plain = {name: value for name, value in columns.items() if name != last}
        seconds, flops, moved = self.inner.explain_many(plain)
        # bounds that know of no adapters ask without their column
        adapters = np.asarray(columns.get(last, np.zeros(len(columns["n_decode"]))), dtype=float)
        tokens = np.asarray(columns["prefill_tokens"], dtype=float) + np.asarray(
            columns["n_decode"], dtype=float
        )
        some = np.where(adapters > 0, 1.0, 0.0)
        more_flops = some * tokens * self.flops_per_token
        more_bytes = some * (tokens * self.bytes_per_token + adapters * self.bytes_per_adapter)
        compute, memory = more_flops / self.flops_per_s, more_bytes / self.bytes_per_s
        terms = {"compute": compute, "weight_bandwidth": memory}
        booked = forms.split_by_largest(some * self.launch_s, np.maximum(compute, memory), terms)
        books = {"gemm": dict(seconds["gemm"])}
        add_seconds(books, {"gemm": booked})
        return {**seconds, **books}, flops + more_flops, moved + more_bytes
