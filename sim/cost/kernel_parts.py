"""The kernels of a model on a group of GPUs, each with its work, its fit and its peak: what a step is summed from."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from stepline.traces.errors import ConfigError

from . import attention_costs, operators
from .attention_backends import NaiveDecode, NaivePrefill, UnsplitDecode
from .attention_costs import AttentionShape, ChunkAttention, DecodeAttention, PrefillAttention, TokenAttention
from .calibration import Calibration, KernelFit
from .sampler import SamplerPart, StepPart
from .specs import EngineProfile, GpuSpec, ModelSpec
from .token_costs import CollectivePart, ElementwisePart, LinearPart, MoePart, Part


@dataclass(frozen=True, slots=True)
class KernelParts:
    """Makes the parts of a step for one GPU of the group; arguments as in `roofline.RooflineCostModel`.

    `queries`: tokens of a sequence in a decode step (speculation verifies several at once).
    """

    model: ModelSpec
    gpu: GpuSpec
    calibration: Calibration
    engine: EngineProfile
    kv_dtype: str
    moe_skew: float
    history_rule: str
    tp: int = 1
    dp: int = 1
    ep: int = 1
    queries: int = 1
    extra_linears: tuple[operators.Linear, ...] = ()
    attention_backend: str = "auto"
    fused_elementwise: bool = True

    @property
    def world(self) -> int:
        """GPUs of the group: each of `dp` ranks has `tp`."""
        return self.tp * self.dp

    @property
    def spread(self) -> bool:
        """Whether tokens travel to the experts and back, in place of a second all-reduce."""
        return self.model.moe is not None and (self.ep > 1 or self.dp > 1)

    def fit(self, name: str, *fallbacks: str) -> KernelFit:
        """Constants of a kernel, as timed in a served engine where the engine's are."""
        names = (name, *fallbacks)
        if self.engine.serving_kernels:
            names = tuple(n for plain in names for n in (f"{plain}_serving", plain))
        return self.calibration.kernel(*names)

    # --- by the tokens of one rank

    def by_token(self) -> list[Part]:
        """What depends on the tokens that this GPU computes."""
        parts = [
            *[self.linear(x) for x in operators.linears(self.model, self.tp) if x.kernel == "gemm"],
            *[self.linear(x) for x in self.extra_linears],
            ElementwisePart(self.model, self.tp, self.fused_elementwise, self.fit("elementwise"), self.gpu),
        ]
        if self.dp == 1:
            parts += self.moe()
        parts += self._all_reduce()
        if self.dp == 1:
            parts += self._travel()
        return parts + self._step()

    def by_group_token(self) -> list[Part]:
        """What depends on the tokens of all ranks: routed experts, and the way to them and back."""
        return self.moe() + self._travel() if self.dp > 1 else []

    def linear(self, linear: operators.Linear) -> Part:
        """One kind of linear layer."""
        dtype = operators.linear_dtype(self.model, linear)
        fit = self.fit("gemm") if dtype == self.model.weight_dtype else self.fit("gemm_bf16", "gemm")
        return LinearPart(linear, dtype, fit, self.gpu, compute_peak(self.gpu, dtype))

    def moe(self) -> list[Part]:
        """The routed experts."""
        if self.model.moe is None:
            return []
        peak = compute_peak(self.gpu, self.model.weight_dtype)
        return [MoePart(self.model, self.world, self.ep, self.moe_skew, self.fit("moe"), self.gpu, peak)]

    def _all_reduce(self) -> list[Part]:
        """One after attention and one after the FFN of each layer; experts that tokens travel to need no second."""
        if self.tp == 1:
            return []
        model = self.model
        count = 2 * model.n_layers - (model.n_moe_layers if self.spread else 0)
        return [self._collective("all_reduce", count, self._hidden_bytes, self.tp)]

    def _travel(self) -> list[Part]:
        """Tokens to their experts and back, in each MoE layer.

        Whole experts on `ep` GPUs: two all-to-alls, each as long as its busiest GPU, which holds the most popular
        experts and takes its share of all T k copies. Experts cut over the group (DP without expert parallelism): an
        all-gather of the ranks' tokens and a reduce-scatter of their results (vLLM `naive` all2all back end).
        """
        moe = self.model.moe
        if moe is None or not self.spread:
            return []
        count = self.model.n_moe_layers
        if self.ep == 1:
            gathered = self._hidden_bytes
            return [
                self._collective("all_gather", count, gathered, self.world),
                self._collective("reduce_scatter", count, gathered, self.world),
            ]
        experts = operators.MoeShape(
            self.model.hidden_size, moe.expert_size, moe.n_experts, moe.top_k, ep=self.ep, skew=self.moe_skew
        )
        taken = self._hidden_bytes * moe.top_k * operators.busiest_share(experts)
        return [self._collective("all_to_all", 2 * count, taken, self.ep)]

    @property
    def _hidden_bytes(self) -> float:
        return operators.ACTIVATION_BYTES * self.model.hidden_size

    def _collective(self, kind: str, count: int, bytes_per_token: float, world: int) -> Part:
        return CollectivePart(count, bytes_per_token, world, kind, self.collective_fit(kind, world), self.gpu)

    def collective_fit(self, kind: str, world: int) -> KernelFit:
        """Constants of a collective, of the nearest group size; all-to-alls and reduce-scatters without a table take
        those of the all-gather, which puts the same (w - 1) / w of its buffer on the wire."""
        kinds = (kind,) if kind == "all_reduce" else (kind, "all_gather")
        names = [
            name for k in kinds for name in (f"{k}_{world}", *nearest_worlds(self.calibration, k, world))
        ]
        return self.fit(*names)

    def _step(self) -> list[Part]:
        engine = self.engine
        seconds = engine.step_gpu_s + (engine.tp_step_gpu_s if self.tp > 1 else 0.0)
        return [StepPart(seconds)] if seconds else []

    # --- by rows of logits

    def by_row(self) -> list[Part]:
        """LM head, gathering the logits, picking tokens."""
        head = operators.head_linear(self.model, self.tp)
        parts = [self.linear(head)]
        if self.tp > 1:
            logits_bytes = operators.ACTIVATION_BYTES * head.n * self.tp
            parts.append(self._collective("all_gather", 1, logits_bytes, self.tp))
        if self.engine.sampler_kernels:
            model = self.model
            fit = self.fit("elementwise")
            parts.append(SamplerPart(model.vocab_size, model.sampling, self.engine, fit, self.gpu))
        return parts

    # --- attention

    def attention(self) -> tuple[list[ChunkAttention], list[TokenAttention]]:
        """Of chunks and of decodes, one for each window of the model."""
        model = self.model
        peak = compute_peak(self.gpu, "fp32" if model.weight_dtype == "fp32" else "bf16")
        prefill = attention_costs.prefill_shape(model, self.tp, self.kv_dtype)
        decode = self._verifying(attention_costs.decode_shape(model, self.tp, self.kv_dtype))
        if self.attention_backend == "naive":
            fits = self.fit("gemm_bf16", "gemm"), self.fit("elementwise")
            return (
                [NaivePrefill(prefill, *fits, self.gpu, peak, layers=n) for _, n in model.windows],
                [NaiveDecode(decode, *fits, self.gpu, peak, layers=n) for _, n in model.windows],
            )
        return self._prefill(prefill, peak), self._decode(decode, peak)

    def _verifying(self, shape: AttentionShape) -> AttentionShape:
        """A decode of several queries a sequence reads its keys once for all of them."""
        q = self.queries
        if q == 1:
            return shape
        return replace(shape, flops_per_pair=q * shape.flops_per_pair, query_bytes=q * shape.query_bytes)

    def _prefill(self, shape: AttentionShape, peak: float) -> list[ChunkAttention]:
        prefill_fit, decode_fit = self.attention_fits()
        return [
            PrefillAttention(
                shape,
                prefill_fit,
                self.gpu,
                peak,
                layers=layers,
                window=window,
                history=self.history_rule,
                decode_eff=decode_fit.constants["memory_eff"],
                slice_at=self._heads(),
            )
            for window, layers in self.model.windows
        ]

    def _decode(self, shape: AttentionShape, peak: float) -> list[TokenAttention]:
        fit, gpu, windows = self.attention_fits()[1], self.gpu, self.model.windows
        if self.attention_backend == "flash":
            return [UnsplitDecode(shape, fit, gpu, peak, layers=n) for _, n in windows]
        at = self._heads()
        return [DecodeAttention(shape, fit, gpu, peak, layers=n, slice_at=at) for _, n in windows]

    def _heads(self) -> dict[str, float]:
        heads, kv_heads = operators.heads_per_gpu(self.model, self.tp)
        return {"heads": float(heads), "kv_heads": float(kv_heads), "group": heads / kv_heads}

    def attention_fits(self) -> tuple[KernelFit, KernelFit]:
        """Of chunks and of decodes."""
        if self.model.mla is not None:
            return self.fit("mla_prefill", "attention_prefill"), self.fit("mla_decode", "attention_decode")
        if self.model.n_heads == self.model.n_kv_heads:
            return (
                self.fit("attention_prefill_mha", "attention_prefill"),
                self.fit("attention_decode_mha", "attention_decode"),
            )
        return self.fit("attention_prefill"), self.fit("attention_decode")

    # --- checks

    def check(self) -> None:
        """Raise ConfigError where the group does not divide the model."""
        operators.heads_per_gpu(self.model, self.tp)
        moe = self.model.moe
        if self.dp < 1 or (self.dp > 1 and moe is None):
            raise ConfigError(
                f"dp: got {self.dp}, expected 1, or ranks that share the experts of an MoE model"
            )
        if self.ep != 1 and (moe is None or self.ep != self.world or moe.n_experts % self.ep):
            raise ConfigError(
                f"ep: got {self.ep}, expected 1 or tp x dp ({self.world}), on a model whose experts it divides"
            )
        if self.attention_backend == "naive" and self.model.mla is not None:
            raise ConfigError(
                f"attention_backend: naive attention of the latents of {self.model.name} is not modelled"
            )
        if self.attention_backend == "naive" and self.queries > 1:
            raise ConfigError("attention_backend: naive attention of several drafted tokens is not modelled")
        if self.moe_skew < 0 or not math.isfinite(self.moe_skew):
            raise ConfigError(f"moe_skew: got {self.moe_skew}, expected a number >= 0")

    def notes(self) -> list[str]:
        """What a reader of a result must know of the collectives."""
        notes = []
        if self.ep > 1 and not any(k.startswith("all_to_all_") for k in self.calibration.kernels):
            notes.append(
                "all-to-all is in no table of this calibration: priced with the constants of the all-gather"
            )
        return notes


def compute_peak(gpu: GpuSpec, dtype: str) -> float:
    """FLOP/s at which layers stored in `dtype` compute: weight-only formats (int4) and those the GPU lacks run bf16.

    fp8 on a GPU without fp8 tensor cores (A100) is weight-only too: vLLM's Marlin kernels dequantise to bf16.
    """
    if dtype != "int4" and dtype in gpu.peak_flops:
        return gpu.peak_flops[dtype]
    return gpu.peak_flops["bf16"]


def nearest_worlds(calibration: Calibration, kind: str, world: int) -> tuple[str, ...]:
    """Kernels of a collective fitted for other group sizes, nearest (in ratio) first."""
    prefix = f"{kind}_"
    sizes = [int(name[len(prefix) :]) for name in calibration.kernels if name.startswith(prefix)]
    return tuple(f"{prefix}{size}" for size in sorted(sizes, key=lambda s: abs(math.log(s / world))))
