"""Frames behind the pictures of a model's steps: kernels on the roofline, tokens/s over batch, shares of the traffic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.sim.cost import forms
from stepline.sim.cost.operators import linear_dtype, linears
from stepline.sim.cost.roofline import RooflineCostModel, compute_peak
from stepline.sim.cost.token_costs import LinearPart
from stepline.sim.cost.work import StepWork

from ..seeds.accounting import KernelAccount, StepShape, account, step_shape, total

if TYPE_CHECKING:
    import pandas as pd

PREFILL_TOKENS = (512, 2048, 8192)
"""Prompts whose kernels stand on the roofline beside those of a decode."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
CONTEXTS = (512, 2048, 8192)

USABLE_FRAC = 0.9
"""Share of the memory that an engine takes (vLLM's --gpu-memory-utilization of many years)."""


@dataclass(frozen=True, slots=True)
class Knee:
    """Where the throughput of a decode stops following the batch.

    batch        smallest batch that reaches half of `plateau_tok_per_s`, the rate at the largest batch priced
    capacity     sequences whose KV fits beside the weights; 0 if the weights alone do not
    kv_frac      share of KV among the bytes read at the knee
    flops_frac   compute time over read time at the knee
    """

    context: int
    batch: int
    plateau_tok_per_s: float
    capacity: int
    kv_frac: float
    flops_frac: float

    @property
    def why(self) -> str:
        """One sentence."""
        cause = (
            f"there {self.kv_frac:.0%} of the bytes are KV, which every further sequence adds to"
            if self.kv_frac > self.flops_frac
            else f"there computing takes {self.flops_frac:.0%} as long as reading, and grows with every sequence"
        )
        limit = "" if self.capacity >= self.batch else f"; but only {self.capacity} sequences fit in memory"
        where = f"at {self.context} tokens of context the rate reaches half its plateau at batch {self.batch}"
        return f"{where}: {cause}{limit}"


def step_work(shape: StepShape, windows: tuple[tuple[int | None, int], ...]) -> StepWork:
    """The cost model's view of a step of equal sequences."""
    if shape.phase == "prefill":
        pairs = shape.batch * (shape.new * shape.done + shape.new * (shape.new + 1) // 2)
        return StepWork(shape.tokens, shape.batch, pairs, shape.keys, 0, (0,) * len(windows), shape.batch)
    context = shape.new + shape.done
    seen = tuple(shape.batch * (context if w is None else min(w, context)) for w, _ in windows)
    return StepWork(0, 0, 0, 0, shape.batch, seen, shape.batch)


def roofline_points(cost: RooflineCostModel, batch: int, context: int) -> pd.DataFrame:
    """Every kernel of a decode and of three prefills: intensity, achieved FLOP/s, share of the step, efficiency.

    Columns: step, phase, kernel, class, flop_per_byte, flop_per_s, roof_frac (of the roofline at that
    intensity),
    time_us, time_frac.
    """
    import pandas as pd

    shapes = [step_shape("decode", batch, context), *(step_shape("prefill", 1, n) for n in PREFILL_TOKENS)]
    rows = [row for shape in shapes for row in _points(cost, shape)]
    return pd.DataFrame(rows)


def _points(cost: RooflineCostModel, shape: StepShape) -> list[dict[str, Any]]:
    gpu = cost.gpu
    kernels = [
        k for k in account(cost.model, shape, cost.tp, cost.kv_dtype, fused=True) if k.name != "sampling"
    ]
    seconds = kernel_seconds(cost, shape, kernels)
    step_s = sum(seconds.values())
    label = f"decode, batch {shape.batch}" if shape.phase == "decode" else f"prefill, {shape.new} tokens"
    rows: list[dict[str, Any]] = []
    for kernel in kernels:
        peak = _peak(cost, kernel.name)
        roof = min(peak, kernel.intensity * gpu.hbm_bytes_per_s)
        rate = kernel.flops / seconds[kernel.name]
        rows.append(
            {"step": label, "phase": shape.phase, "kernel": kernel.name, "class": kernel_class(kernel.name)}
            | {"flop_per_byte": kernel.intensity, "flop_per_s": rate, "roof_frac": rate / roof}
            | {"time_us": seconds[kernel.name] * 1e6, "time_frac": seconds[kernel.name] / step_s}
        )
    return rows


def kernel_class(name: str) -> str:
    """Class of a kernel in the pictures: linear layers, attention, experts, elementwise."""
    if name in ("attention", "experts"):
        return name
    small = name.startswith(("norm", "final_norm", "residual", "rope", "act"))
    return "elementwise" if small else "linear"


def kernel_seconds(
    cost: RooflineCostModel, shape: StepShape, kernels: list[KernelAccount]
) -> dict[str, float]:
    """Calibrated seconds of each kernel of a step (all layers together), by name."""
    explained = cost.explain(step_work(shape, cost.model.windows)).seconds
    whole = {name: sum(split.values()) for name, split in explained.items()}
    constants = cost.calibration.kernel("elementwise").constants
    by_name = {x.name: x for x in linears(cost.model, cost.tp)}
    found: dict[str, float] = {}
    for kernel in kernels:
        if kernel.name == "attention":
            found[kernel.name] = whole[f"attention_{shape.phase}"]
        elif kernel.name == "experts":
            found[kernel.name] = whole["moe"]
        elif kernel.name in by_name:
            rows = shape.batch if kernel.name == "lm_head" else shape.tokens
            found[kernel.name] = _linear_seconds(cost, kernel.name, rows)
        else:
            split = forms.elementwise(np.array([kernel.bytes]), kernel.launches, constants, cost.gpu)
            found[kernel.name] = float(forms.total_s(split)[0])
    return found


def _linear_seconds(cost: RooflineCostModel, name: str, rows: int) -> float:
    linear = next(x for x in linears(cost.model, cost.tp) if x.name == name)
    dtype = linear_dtype(cost.model, linear)
    own = dtype == cost.model.weight_dtype
    fit = cost.calibration.kernel("gemm") if own else cost.calibration.kernel("gemm_bf16", "gemm")
    part = LinearPart(linear, dtype, fit, cost.gpu, compute_peak(cost.gpu, dtype))
    return float(forms.total_s(part.split(np.array([float(rows)])))[0])


def _peak(cost: RooflineCostModel, name: str) -> float:
    linear = next((x for x in linears(cost.model, cost.tp) if x.name == name), None)
    if linear is not None:
        return compute_peak(cost.gpu, linear_dtype(cost.model, linear))
    if name == "experts":
        return compute_peak(cost.gpu, cost.model.weight_dtype)
    return compute_peak(cost.gpu, "bf16")


def decode_curve(cost: RooflineCostModel, contexts: tuple[int, ...] = CONTEXTS) -> pd.DataFrame:
    """Tokens/s of decodes over batch: what the calibration gives, and what bandwidth and peak alone would allow.

    Columns: context, batch, rate (calibrated), ceiling (the floor of every kernel), bandwidth (reads alone).
    """
    import pandas as pd

    return pd.DataFrame([_rates(cost, c, b) for c in contexts for b in BATCHES])


def _rates(cost: RooflineCostModel, context: int, batch: int) -> dict[str, float]:
    shape = step_shape("decode", batch, context)
    kernels = account(cost.model, shape, cost.tp, cost.kv_dtype, fused=True)
    step = total(kernels)
    read_s = (step.weight_bytes + step.kv_bytes) / cost.gpu.hbm_bytes_per_s
    compute_s = sum(k.flops / _peak(cost, k.name) for k in kernels)
    return {
        "context": context,
        "batch": batch,
        "rate": batch / cost.step_s(step_work(shape, cost.model.windows)),
        "bandwidth": batch / read_s,
        "ceiling": batch / max(read_s, compute_s),
        "kv_frac": step.kv_bytes / (step.weight_bytes + step.kv_bytes),
        "flops_frac": compute_s / read_s,
    }


def knees(cost: RooflineCostModel, curve: pd.DataFrame) -> list[Knee]:
    """The knee of each context of `decode_curve`."""
    return [_knee(cost, int(str(context)), part) for context, part in curve.groupby("context")]


def _knee(cost: RooflineCostModel, context: int, part: pd.DataFrame) -> Knee:
    plateau = float(part["rate"].max())
    batch = next(b for b in range(1, BATCHES[-1] + 1) if _rates(cost, context, b)["rate"] >= plateau / 2)
    at = _rates(cost, context, batch)
    return Knee(context, batch, plateau, capacity(cost, context), at["kv_frac"], at["flops_frac"])


def capacity(cost: RooflineCostModel, context: int) -> int:
    """Sequences of `context` tokens whose KV fits beside the weights in `USABLE_FRAC` of the memory."""
    from stepline.sim.cost.parameters import weight_bytes

    one = total(account(cost.model, step_shape("decode", 1, context), cost.tp, cost.kv_dtype)).kv_bytes
    free = USABLE_FRAC * cost.gpu.memory_bytes - weight_bytes(cost.model, tp=cost.tp)
    return max(0, int(free // one))


def traffic_shares(cost: RooflineCostModel, context: int) -> pd.DataFrame:
    """Bytes of a decode step by what is read, over batch. Columns: batch, part, gigabytes."""
    import pandas as pd

    rows = []
    for batch in BATCHES:
        step = total(
            account(cost.model, step_shape("decode", batch, context), cost.tp, cost.kv_dtype, fused=True)
        )
        parts = {
            "weights": step.weight_bytes,
            "KV cache": step.kv_bytes,
            "activations": step.activation_bytes,
        }
        rows += [{"batch": batch, "part": name, "gigabytes": b / 1e9} for name, b in parts.items()]
    return pd.DataFrame(rows)


def step_breakdown(cost: RooflineCostModel, context: int) -> pd.DataFrame:
    """Calibrated milliseconds of a decode step by kernel class over batch. Columns: batch, kernel, ms."""
    import pandas as pd

    rows = []
    for batch in BATCHES:
        work = step_work(step_shape("decode", batch, context), cost.model.windows)
        seconds = cost.explain(work).seconds
        rows += [
            {"batch": batch, "kernel": k, "ms": 1e3 * sum(split.values())} for k, split in seconds.items()
        ]
    return pd.DataFrame(rows)
