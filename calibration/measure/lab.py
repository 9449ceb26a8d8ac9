"""Whole steps of a model, timed: prefills of several lengths, decodes of several batches.

The step is the model's own sequence of kernels at its shapes, every layer on weights of its own (random,
consecutive stretches of the arena, so never in the cache twice in a row). Kernels are not wired to each
other: their times do not depend on values. Achieved rates stand beside the ceilings of the device.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from stepline.traces.errors import ConfigError

from .cases import Case
from .kernels import Call, Kernels, Unsupported, operand_bytes
from .timers import Timer, Timing

if TYPE_CHECKING:
    from stepline.sim.cost.specs import ModelSpec

    from ..seeds.accounting import Phase, StepShape

PREFILL_TOKENS = (128, 512, 2048, 8192)
DECODE_BATCHES = (1, 4, 16, 64, 128, 256)
CPU_PREFILL_TOKENS, CPU_DECODE_BATCHES, CPU_LAYERS = (16, 64, 256), (1, 4, 16), 1
"""What a CPU can time in about a minute: a layer of an 8B model takes seconds there, all of them half an hour."""

DECODE_PROMPT, DECODE_TOKENS = 128, 128
"""The lab of the texts: 128 tokens are decoded after a prompt of 128; a step is timed at the mean context."""

PEAK_EDGE, PEAK_COPY_BYTES = 2048, 2**27
"""The ceilings: a square matmul of this edge (times 4 on a GPU) and a copy of this size (times 8)."""

POINT_S = 1.0
"""Seconds of samples of one point."""


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reached just before: best matmul and copy of this run."""

    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class Point:
    """One timed step. Rates are achieved; `_frac` of the measured ceilings; `ceiling_tok_per_s` by bandwidth alone."""

    phase: str
    tokens: int
    batch: int
    context: int
    step_s: float
    spread_s: float
    flop_per_s: float
    bytes_per_s: float
    tok_per_s: float
    ceiling_tok_per_s: float
    mfu_frac: float
    mbu_frac: float
    intensity: float
    bound: str


def run_lab(args: argparse.Namespace, kernels: Kernels, timer: Timer, dtype: str) -> int:
    """`calibrate measure --phase ...`: print the table, write `--out` as JSON if given."""
    from stepline.sim.cost.catalogue import load_model

    if args.model is None:
        raise ConfigError("--phase: needs --model NAME")
    model = load_model(args.model)
    layers = args.layers
    if layers is None:
        layers = CPU_LAYERS if args.device == "cpu" else model.n_layers
    if not 1 <= layers <= model.n_layers:
        raise ConfigError(
            f"--layers: got {layers}, expected 1 to {model.n_layers}, the layers of {model.name}"
        )
    if args.out is not None and args.out.suffix != ".json":
        raise ConfigError(f"--out: got {args.out.name!r}, expected a name that ends in .json with --phase")
    for flag, phase in (("tokens", "prefill"), ("batches", "decode"), ("context", "decode")):
        if getattr(args, flag) is not None and args.phase != phase:
            raise ConfigError(f"--{flag}: only used with --phase {phase}")
    found = points(model, layers, shapes(args), kernels, timer, dtype)
    _print(model, layers, found)
    print(explanation(args.phase, found))
    if args.out is not None:
        _write(args, kernels, model, layers, dtype, found)
    return 0


def shapes(args: argparse.Namespace) -> list[StepShape]:
    """The steps that the flags ask for."""
    from ..seeds.accounting import step_shape

    cpu = args.device == "cpu"
    if args.phase == "prefill":
        usual = CPU_PREFILL_TOKENS if cpu else PREFILL_TOKENS
        return [step_shape("prefill", 1, n) for n in _numbers(args.tokens, usual, "--tokens")]
    batches = CPU_DECODE_BATCHES if cpu else DECODE_BATCHES
    prompt = DECODE_PROMPT if args.context is None else args.context
    context = prompt + DECODE_TOKENS // 2
    return [step_shape("decode", b, context) for b in _numbers(args.batches, batches, "--batches")]


def points(
    model: ModelSpec, layers: int, todo: Sequence[StepShape], kernels: Kernels, timer: Timer, dtype: str
) -> list[Point]:
    """Time every step; one that the device cannot hold or run is said on stderr and left out.

    Raises:
        ConfigError: the model has kernels that are not timed here, or no step could be run.
    """
    best = ceilings(kernels, timer, dtype)
    found = []
    for shape in todo:
        try:
            found.append(point(model, layers, shape, kernels, timer, dtype, best))
        except Unsupported as reason:
            print(f"{shape.phase} of {shape.tokens} tokens: left out: {reason}", file=sys.stderr)
    if not found:
        raise ConfigError(f"--model {model.name}: no step of it could be run on this device")
    return found


def ceilings(kernels: Kernels, timer: Timer, dtype: str) -> Ceilings:
    """Best matmul and copy of the device now."""
    gpu = kernels.gpu != "cpu"
    edge, size = PEAK_EDGE * (4 if gpu else 1), PEAK_COPY_BYTES * (8 if gpu else 1)
    matmul = timer.time((kernels.make(Case("gemm", dtype, m=edge, n=edge, k=edge)),), POINT_S)
    copies = tuple(kernels.make(Case("copy", dtype, message_bytes=size)) for _ in range(2))
    return Ceilings(2 * edge**3 / matmul.median_s, size / timer.time(copies, POINT_S).median_s)


def point(
    model: ModelSpec,
    layers: int,
    shape: StepShape,
    kernels: Kernels,
    timer: Timer,
    dtype: str,
    best: Ceilings,
) -> Point:
    """Time one step of `layers` layers and the LM head, and scale the layers to the model's."""
    body, head = step_cases(model, shape, dtype)
    kernels.reserve(2 * max(operand_bytes(case) for case in (*body, *head)))
    calls: list[Call] = [kernels.make(case) for _ in range(layers) for case in body]
    last = [kernels.make(case) for case in head]
    scale = model.n_layers / layers
    times = (_together(calls, timer), _together(last, timer))
    step_s = scale * times[0].median_s + times[1].median_s
    spread_s = scale * times[0].spread_s + times[1].spread_s
    return _rated(model, shape, dtype, step_s, spread_s, best)


def _together(calls: Sequence[Call], timer: Timer) -> Timing:
    """Seconds of all calls in a row, as one call."""

    def all_of_them() -> None:
        for call in calls:
            call()

    return timer.time((all_of_them,), POINT_S)


def step_cases(model: ModelSpec, shape: StepShape, dtype: str) -> tuple[list[Case], list[Case]]:
    """The kernels of one layer in order, and those after the last layer.

    Raises:
        ConfigError: experts, latent attention, windows or classic FFNs: those kernels are not timed here.
    """
    from stepline.sim.cost.operators import linears

    if model.moe or model.mla or len(model.windows) > 1 or model.windows[0][0] or not model.gated_ffn:
        raise ConfigError(f"--model {model.name}: only dense gated models with full attention are built here")
    rows = shape.tokens
    gemms = {x.name: Case("gemm", dtype, m=rows, n=x.n, k=x.k) for x in linears(model)}

    def small(operation: str, width: int, m: int = rows) -> Case:
        return Case("elementwise", dtype, m=m, n=width, operation=operation)

    rope = small("rope", (model.n_heads + model.n_kv_heads) * model.head_dim)
    body = [
        small("add_norm", model.hidden_size), gemms["qkv"], rope, _attention(model, shape, dtype), gemms["attention_out"],
        small("add_norm", model.hidden_size), gemms["ffn_up"], small("act", model.ffn_size), gemms["ffn_down"],
    ]  # fmt: skip
    head = Case("gemm", dtype, m=shape.batch, n=gemms["lm_head"].n, k=gemms["lm_head"].k)
    draw = Case("host", dtype, m=shape.batch, n=model.vocab_size, operation="sampling")
    return body, [small("norm", model.hidden_size, shape.batch), head, draw]


def _attention(model: ModelSpec, shape: StepShape, dtype: str) -> Case:
    return Case(
        f"attention_{shape.phase}", dtype, heads=model.n_heads, kv_heads=model.n_kv_heads, head_dim=model.head_dim,
        batch=shape.batch, query_tokens=shape.new, history_tokens=shape.done, context_tokens=shape.new + shape.done,
        ragged=False,
    )  # fmt: skip


def _rated(
    model: ModelSpec, shape: StepShape, dtype: str, step_s: float, spread_s: float, best: Ceilings
) -> Point:
    from dataclasses import replace

    from ..seeds.accounting import account, total

    typed = replace(model, weight_dtype="fp32" if dtype == "fp32" else "bf16")
    work = total(account(typed, shape, kv_dtype=typed.weight_dtype, fused=True))
    read = work.weight_bytes + work.kv_bytes
    emitted = shape.tokens if shape.phase == "prefill" else shape.batch
    ridge = best.flops_per_s / best.bytes_per_s
    return Point(
        phase=shape.phase, tokens=shape.tokens, batch=shape.batch, context=shape.new + shape.done, step_s=step_s,
        spread_s=spread_s, flop_per_s=work.flops / step_s, bytes_per_s=work.bytes / step_s, tok_per_s=emitted / step_s,
        ceiling_tok_per_s=emitted * best.bytes_per_s / read, mfu_frac=work.flops / step_s / best.flops_per_s,
        mbu_frac=work.bytes / step_s / best.bytes_per_s, intensity=work.intensity,
        bound="compute" if work.intensity > ridge else "memory",
    )  # fmt: skip


def explanation(phase: Phase, found: Sequence[Point]) -> str:
    """What the points say: where prefill turns compute-bound, at which batch decode stops gaining and why."""
    if phase == "prefill":
        first = next((p for p in found if p.bound == "compute"), None)
        top = max(found, key=lambda p: p.mfu_frac)
        turn = f"compute-bound from {first.tokens} tokens on" if first else "memory-bound at every length"
        return f"prefill is {turn}; best use of the arithmetic {top.mfu_frac:.0%}, at {top.tokens} tokens"
    gains = [(b.tok_per_s / a.tok_per_s) / (b.batch / a.batch) for a, b in pairwise(found)]
    flat = next((b for b, gain in zip(found[1:], gains, strict=True) if gain < 0.6), None)
    if flat is None:
        return "decode: tokens/s still follow the batch at the largest one: the weights are read once for all sequences"
    if max(flat.mfu_frac, flat.mbu_frac) < 0.5:
        cause = "neither ceiling is near: the kernels or their launches lose the rest"
    elif flat.bound == "compute":
        cause = "its FLOPs take as long as its bytes"
    else:
        cause = "KV reads grow with it while the weights are read once"
    used = f"{flat.mfu_frac:.0%} of the arithmetic, {flat.mbu_frac:.0%} of the bandwidth"
    return f"decode flattens at batch {flat.batch}: {cause} ({used}, {flat.intensity:.0f} FLOP/B)"


def _print(model: ModelSpec, layers: int, found: Sequence[Point]) -> None:
    built = "" if layers == model.n_layers else f", {layers} of {model.n_layers} layers built and scaled"
    print(f"{model.name}{built}; MFU and MBU are shares of this device's best matmul and copy")
    head = (
        "phase",
        "tokens",
        "batch",
        "context",
        "step ms",
        "TFLOP/s",
        "GB/s",
        "tok/s",
        "ceiling",
        "MFU",
        "MBU",
        "FLOP/B",
    )
    rows = [_columns(p) for p in found]
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)))


def _columns(p: Point) -> tuple[str, ...]:
    rates = (p.step_s * 1e3, p.flop_per_s / 1e12, p.bytes_per_s / 1e9, p.tok_per_s, p.ceiling_tok_per_s)
    shares = (f"{p.mfu_frac:.1%}", f"{p.mbu_frac:.1%}", f"{p.intensity:.3g}")
    return (p.phase, str(p.tokens), str(p.batch), str(p.context), *(f"{r:.4g}" for r in rates), *shares)


def _write(
    args: argparse.Namespace,
    kernels: Kernels,
    model: ModelSpec,
    layers: int,
    dtype: str,
    found: Sequence[Point],
) -> None:
    from .facts import host_facts

    said = {
        "model": model.name,
        "layers": layers,
        "dtype": dtype,
        "gpu": kernels.gpu,
        **host_facts(),
        **kernels.facts(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps(said | {"points": [asdict(p) for p in found]}, indent=2, default=str) + "\n"
    )


def _numbers(text: str | None, default: tuple[int, ...], flag: str) -> tuple[int, ...]:
    if text is None:
        return default
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise ConfigError(f"{flag}: got {text!r}, expected whole numbers >= 1 by commas")
    return found
