"""Per-kernel accounting of a decoder: FLOPs, weight, KV and activation bytes, intensity and regime of every kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from stepline.sim.cost.operators import (
    ACTIVATION_BYTES,
    MoeShape,
    attention_flops,
    bytes_per_element,
    causal_pairs,
    ceil_div,
    elementwise_bytes,
    gemm_activation_bytes,
    gemm_flops,
    gemm_weight_bytes,
    heads_per_gpu,
    kv_bytes,
    latent_bytes,
    linear_dtype,
    linears,
    moe_work,
    query_bytes,
    windowed_pairs,
)
from stepline.traces.errors import ConfigError

if TYPE_CHECKING:
    from stepline.sim.cost.operators import Linear
    from stepline.sim.cost.specs import GpuSpec, ModelSpec

Phase = Literal["prefill", "decode"]

NORM_FLOPS = 5
"""FLOPs an element of RMS norm: square, sum, two products, a share of the root (the count that text 004 uses)."""
SOFTMAX_FLOPS = 5
"""FLOPs a score of softmax: maximum, difference, exponential, sum, quotient (same source)."""
ROPE_FLOPS = 3
"""FLOPs a rotated element: two products and a sum (a 2 x 2 rotation is 6 FLOPs for 2 elements)."""
ACT_FLOPS = 5
"""FLOPs an output of SiLU(gate) * up: exponential, sum, quotient, two products."""


@dataclass(frozen=True, slots=True)
class KernelAccount:
    """One kernel of a step on one GPU, `launches` times in the whole model; amounts are of all launches together."""

    name: str
    launches: int
    flops: float
    weight_bytes: float
    kv_bytes: float
    activation_bytes: float

    @property
    def bytes(self) -> float:
        """All bytes moved."""
        return self.weight_bytes + self.kv_bytes + self.activation_bytes

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes

    def floor_s(self, gpu: GpuSpec, dtype: str = "bf16") -> float:
        """Seconds that no implementation can beat: max of FLOPs at the peak of `dtype` and bytes at full bandwidth."""
        return max(self.flops / gpu.peak_flops[dtype], self.bytes / gpu.hbm_bytes_per_s)

    def regime(self, gpu: GpuSpec, dtype: str = "bf16") -> str:
        """`compute` or `memory`: on which side of the ridge the kernel lies."""
        return "compute" if self.intensity >= gpu.peak_flops[dtype] / gpu.hbm_bytes_per_s else "memory"


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a step computes: `batch` sequences, each with `new` tokens after `done` cached ones."""

    phase: Phase
    batch: int
    new: int
    done: int

    @property
    def tokens(self) -> int:
        """New tokens of the whole batch."""
        return self.batch * self.new

    @property
    def keys(self) -> int:
        """Keys that attention reads, all sequences together, without a window."""
        return self.batch * (self.new + self.done)


def step_shape(phase: Phase, batch: int, context: int) -> StepShape:
    """A prefill of `context` tokens, or a decode whose new token is number `context`.

    Raises:
        ConfigError: batch or context below 1.
    """
    if batch < 1 or context < 1:
        raise ConfigError(f"got batch {batch} and context {context}, expected both >= 1")
    return (
        StepShape(phase, batch, context, 0) if phase == "prefill" else StepShape(phase, batch, 1, context - 1)
    )


def account(
    model: ModelSpec,
    shape: StepShape,
    tp: int = 1,
    kv_dtype: str = "bf16",
    layers: int | None = None,
    *,
    fused: bool = False,
) -> list[KernelAccount]:
    """Every kernel of a step in the order of execution; `layers=1` accounts for one layer instead of all of them.

    Kernels of layers that only some layers have (routed experts beside dense layers) are averaged over layers
    when `layers` is given. Final norm, LM head and sampling run once, on one row a sequence (the last of a
    prompt). `fused`: norms take the residual sums along, as engines do; the texts count them apart.
    """
    part = 1.0 if layers is None else layers / model.n_layers
    count = model.n_layers if layers is None else layers
    found = {x.name: _linear(model, x, shape, part) for x in linears(model, tp)}
    small = _elementwise(model, shape, tp, count, fused)
    attention = _attention(model, shape, tp, kv_dtype, part)
    before, after, head = _in_order(found)
    routed = [_experts(model, shape, tp, part)] if model.moe is not None else []
    inner = [small[name] for name in small if name.startswith("norm")]
    rope = [small["rope"]] if "rope" in small else []
    act = [small["act"]] if small["act"].bytes else []
    down = [x for x in after if x.name.endswith("down")]
    up = [x for x in after if x not in down]
    half = len(inner) // 2  # Gemma has norms after its blocks as well as before them
    body = [inner[0], *before, *rope, attention, found["attention_out"], *inner[1:half]]
    sums = [small[name] for name in small if name.startswith("residual")]
    layer = [*body, *sums[:1], inner[half], *up, *act, *down, *routed, *inner[half + 1 :], *sums[1:]]
    return [*layer, _final_norm(model, shape), head, _sampling(model, shape)]


def total(accounts: list[KernelAccount], name: str = "step") -> KernelAccount:
    """Sum of kernels."""
    return KernelAccount(
        name,
        sum(a.launches for a in accounts),
        sum(a.flops for a in accounts),
        sum(a.weight_bytes for a in accounts),
        sum(a.kv_bytes for a in accounts),
        sum(a.activation_bytes for a in accounts),
    )


def _in_order(
    found: dict[str, KernelAccount],
) -> tuple[list[KernelAccount], list[KernelAccount], KernelAccount]:
    names = list(found)
    out = names.index("attention_out")
    return (
        [found[n] for n in names[:out]],
        [found[n] for n in names[out + 1 :] if n != "lm_head"],
        found["lm_head"],
    )


def _linear(model: ModelSpec, linear: Linear, shape: StepShape, part: float) -> KernelAccount:
    head = linear.kernel == "lm_head"
    rows = shape.batch if head else shape.tokens
    count = 1.0 if head else linear.count * part
    return KernelAccount(
        linear.name,
        max(1, round(count)),
        count * gemm_flops(rows, linear.n, linear.k),
        count * gemm_weight_bytes(linear.n, linear.k, linear_dtype(model, linear)),
        0.0,
        count * gemm_activation_bytes(rows, linear.n, linear.k),
    )


def _attention(model: ModelSpec, shape: StepShape, tp: int, kv_dtype: str, part: float) -> KernelAccount:
    flops = cached = moved = 0.0
    for window, n_layers in model.windows:
        pairs, keys = _pairs_and_keys(shape, window)
        price = _grouped if model.mla is None else _latent
        one = price(model, pairs, keys, shape, tp, kv_dtype)
        times = n_layers * part
        flops, cached, moved = flops + times * one[0], cached + times * one[1], moved + times * one[2]
    launches = max(1, round(model.n_layers * part))
    return KernelAccount("attention", launches, flops, 0.0, cached, moved)


def _pairs_and_keys(shape: StepShape, window: int | None) -> tuple[float, float]:
    context = shape.new + shape.done
    if window is None or window >= context:
        return shape.batch * float(causal_pairs(shape.new, shape.done)), float(shape.keys)
    pairs = float(windowed_pairs(shape.new, shape.done, window))
    return shape.batch * pairs, shape.batch * float(min(context, window + shape.new - 1))


def _grouped(
    model: ModelSpec, pairs: float, keys: float, shape: StepShape, tp: int, kv_dtype: str
) -> tuple[float, float, float]:
    heads, kv_heads = heads_per_gpu(model, tp)
    flops = attention_flops(pairs, heads, model.head_dim) + SOFTMAX_FLOPS * heads * pairs
    return (
        flops,
        kv_bytes(keys, kv_heads, model.head_dim, kv_dtype),
        query_bytes(shape.tokens, heads, model.head_dim),
    )


def _latent(
    model: ModelSpec, pairs: float, keys: float, shape: StepShape, tp: int, kv_dtype: str
) -> tuple[float, float, float]:
    """MLA: expanded heads in prefill, the absorbed form (queries of rank + rope, values of rank) in decode."""
    mla = model.mla
    if mla is None:
        raise ValueError(f"{model.name}: expected latent attention")
    heads = heads_per_gpu(model, tp)[0]
    rope = mla.qk_rope_head_dim
    dims = (mla.qk_nope_head_dim + rope, mla.v_head_dim)
    if shape.phase == "decode":
        dims = (mla.kv_lora_rank + rope, mla.kv_lora_rank)
    flops = attention_flops(pairs, heads, *dims) + SOFTMAX_FLOPS * heads * pairs
    return (
        flops,
        latent_bytes(keys, mla.kv_lora_rank, rope, kv_dtype),
        query_bytes(shape.tokens, heads, *dims),
    )


def _experts(model: ModelSpec, shape: StepShape, tp: int, part: float) -> KernelAccount:
    moe = model.moe
    if moe is None:
        raise ValueError(f"{model.name}: expected a mixture of experts")
    count = model.n_moe_layers * part
    one = MoeShape(model.hidden_size, ceil_div(moe.expert_size, tp), moe.n_experts, moe.top_k, moe.gated)
    work = moe_work(shape.tokens, one, model.weight_dtype)
    flops, weights, activations = (count * float(amount) for amount in work)
    return KernelAccount("experts", max(1, round(count)), flops, weights, 0.0, activations)


def _final_norm(model: ModelSpec, shape: StepShape) -> KernelAccount:
    elements = shape.batch * model.hidden_size
    return KernelAccount("final_norm", 1, NORM_FLOPS * elements, 0.0, 0.0, 2 * ACTIVATION_BYTES * elements)


def _sampling(model: ModelSpec, shape: StepShape) -> KernelAccount:
    """Softmax and draw over the float32 logits of each sequence (the whole vocabulary, gathered from all GPUs)."""
    logits = shape.batch * model.vocab_size
    return KernelAccount("sampling", 1, SOFTMAX_FLOPS * logits, 0.0, 0.0, bytes_per_element("fp32") * logits)


def _elementwise(
    model: ModelSpec, shape: StepShape, tp: int, count: int, fused: bool
) -> dict[str, KernelAccount]:
    moved = elementwise_bytes(model, shape.tokens, tp, fused)
    accounts = {}
    for name, one in moved.items():
        per_element, copies = _per_element(name, model, fused)
        elements = one / ACTIVATION_BYTES / copies
        accounts[name] = KernelAccount(name, count, count * per_element * elements, 0.0, 0.0, count * one)
    return accounts


def _per_element(name: str, model: ModelSpec, fused: bool) -> tuple[int, int]:
    """FLOPs an element of an elementwise kernel, and how often an element is moved."""
    kind = name.partition("_")[0]
    return {
        "norm": (NORM_FLOPS + 1, 4) if fused else (NORM_FLOPS, 2),
        "residual": (1, 3),
        "rope": (ROPE_FLOPS, 2),
        "act": (ACT_FLOPS, 3 if model.gated_ffn else 2),
    }[kind]
