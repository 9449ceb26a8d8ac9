"""`calibrate seeds`: the figures with their verdicts, the per-kernel accounting, the self-check questions.

Three things to print:

- `calibrate seeds` recomputes the 134 figures and lists those that do not hold (`--all`: every one).
- `calibrate seeds --accounting --model llama-3-8b --phase decode --batch 64 --context 2048` accounts for every kernel
  of a decoder layer (`--whole`: of the model): FLOPs, weight, KV and activation bytes, intensity, regime.
- `calibrate seeds --question 3` (or `--questions`) answers the self-check questions with computed numbers.
"""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

if TYPE_CHECKING:
    from .figures import Figure


def main(argv: Sequence[str] | None = None) -> int:
    """`calibrate seeds` with the arguments after the verb; returns the exit status."""
    parser = argparse.ArgumentParser(prog="calibrate seeds")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `calibrate seeds`."""
    parser.description = (
        "Recompute the figures of five teaching texts on LLM inference; account for kernels; answer."
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--all", action="store_true", help="list every figure, not only those that do not hold")
    what.add_argument(
        "--accounting", action="store_true", help="FLOPs, bytes and regime of every kernel of a layer"
    )
    what.add_argument("--questions", action="store_true", help="answer the five self-check questions")
    what.add_argument("--question", type=int, metavar="N", help="answer one of them, 1 to 5")
    parser.add_argument("--json", action="store_true", help="print JSON")
    shape = parser.add_argument_group("with --accounting")
    shape.add_argument("--model", help="catalogue name or config.json (default: llama-3-8b)")
    shape.add_argument("--gpu", help="GPU whose ridge decides the regime (default: h100-sxm)")
    shape.add_argument("--phase", choices=("prefill", "decode"), help="default: both")
    shape.add_argument("--batch", type=int, help="sequences (default: 1)")
    shape.add_argument("--context", type=int, help="prompt length, or context of a decode (default: 2048)")
    shape.add_argument("--tp", "--tensor-parallel-size", type=int, help="tensor-parallel size (default: 1)")
    shape.add_argument("--kv-cache-dtype", help="bf16, fp8, ... (default: bf16)")
    shape.add_argument("--whole", action="store_true", help="all layers instead of one")


def run(args: argparse.Namespace) -> int:
    """Print; exit code 1 if a figure no longer has its committed value or verdict."""
    shape = ("model", "gpu", "phase", "batch", "context", "tp", "kv_cache_dtype", "whole")
    stray = [f for f in shape if getattr(args, f)]
    if stray and not args.accounting:
        raise ConfigError(f"--{stray[0].replace('_', '-')}: only used with --accounting")
    if args.accounting:
        return _accounting(args)
    if args.questions or args.question is not None:
        return _questions(args)
    return _figures(args)


def _figures(args: argparse.Namespace) -> int:
    from .figures import read_figures

    figures = read_figures()
    shown = [f for f in figures if args.all or f.verdict != "ok"]
    if args.json:
        fields = ("number", "seed", "quantity", "claimed", "computed", "unit", "verdict", "reason")
        print(json.dumps([{f: getattr(figure, f) for f in fields} for figure in shown], indent=2))
    else:
        print("\n".join(figure_lines(shown)))
    counts = {v: sum(f.verdict == v for f in figures) for v in ("ok", "loose", "wrong")}
    broken = [f for f in figures if not f.holds]
    said = ", ".join(f"{n} {v}" for v, n in counts.items())
    print(f"{len(figures)} figures: {said}", file=sys.stderr)
    for f in broken:
        was = f"was {f.committed:.6g} ({f.committed_verdict})"
        print(f"figure {f.number}: now {f.computed:.6g} ({f.verdict}), {was}", file=sys.stderr)
    return 1 if broken else 0


WIDTH = 100
"""Columns of a terminal that the table of figures fits."""

INDENT = " " * 8


def figure_lines(figures: Sequence[Figure]) -> list[str]:
    """The table of figures in `WIDTH` columns: numbers and verdict, and folded below them what they are and why."""
    head = ("figure", "text", "verdict", "off", "claimed", "computed", "unit")
    rows = [
        (
            str(f.number),
            f.seed,
            f.verdict,
            f"{f.off_frac:+.1%}",
            f"{f.claimed:.4g}",
            f"{f.computed:.4g}",
            f.unit,
        )
        for f in figures
    ]
    cells = _aligned((head, *rows), left={2, 6})
    lines = [cells[0].rstrip()]
    for figure, numbers in zip(figures, cells[1:], strict=True):
        said = " – ".join(text for text in (figure.quantity, figure.reason) if text)
        lines.append(numbers.rstrip())
        lines += textwrap.wrap(said, WIDTH, initial_indent=INDENT, subsequent_indent=INDENT)
    return lines


def _accounting(args: argparse.Namespace) -> int:
    from stepline.sim.cost.catalogue import load_gpu, load_model

    from .accounting import Phase, account, step_shape, total

    model, gpu = load_model(args.model or "llama-3-8b"), load_gpu(args.gpu or "h100-sxm")
    both: tuple[Phase, ...] = ("prefill", "decode")
    phases = tuple(p for p in both if args.phase in (None, p))
    layers = None if args.whole else 1
    answers: dict[str, list[dict[str, Any]]] = {}
    for phase in phases:
        shape = step_shape(
            phase, 1 if args.batch is None else args.batch, 2048 if args.context is None else args.context
        )
        kernels = account(model, shape, args.tp or 1, args.kv_cache_dtype or "bf16", layers)
        sums = total(kernels, "sum" if args.whole else "layer + head")
        answers[phase] = [_account_row(k, model, gpu) for k in (*kernels, sums)]
    if args.json:
        print(json.dumps(answers, indent=2))
        return 0
    for name, rows in answers.items():
        what = "whole model" if args.whole else "one layer (LM head: once a step)"
        print(f"{name}, {what}: {model.name} on {gpu.name}, TP {args.tp or 1}, batch {args.batch or 1}, "
              f"context {args.context or 2048}")  # fmt: skip
        head = tuple(column.replace("_", " ") for column in rows[0])
        _table(head, [tuple(_short(v) for v in row.values()) for row in rows], left={0, len(head) - 1})
        print()
    return 0


def _account_row(kernel: Any, model: Any, gpu: Any) -> dict[str, Any]:
    from stepline.sim.cost.roofline import compute_peak

    sixteen = kernel.name in ("attention", "lm_head", "router")
    peak = compute_peak(gpu, "bf16" if sixteen else model.weight_dtype)
    dtype = next(d for d, rate in gpu.peak_flops.items() if rate == peak)
    return {
        "kernel": kernel.name,
        "launches": kernel.launches,
        "MFLOP": kernel.flops / 1e6,
        "weight_MB": kernel.weight_bytes / 1e6,
        "KV_MB": kernel.kv_bytes / 1e6,
        "act_MB": kernel.activation_bytes / 1e6,
        "FLOP/B": kernel.intensity,
        "floor_us": kernel.floor_s(gpu, dtype) * 1e6,
        "bound": kernel.regime(gpu, dtype),
    }


def _questions(args: argparse.Namespace) -> int:
    from .questions import QUESTIONS

    wanted = range(1, len(QUESTIONS) + 1) if args.question is None else [args.question]
    if not set(wanted) <= set(range(1, len(QUESTIONS) + 1)):
        raise ConfigError(f"--question: got {args.question}, expected 1 to {len(QUESTIONS)}")
    answers = {n: QUESTIONS[n - 1]() for n in wanted}
    if args.json:
        import dataclasses

        print(json.dumps({n: dataclasses.asdict(a) for n, a in answers.items()}, indent=2))
        return 0
    for n, answer in answers.items():
        print(f"{n}. {answer.question}\n   {answer.text}")
        print("   " + ", ".join(f"{name} {value:.4g}" for name, value in answer.numbers.items()) + "\n")
    return 0


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]], left: set[int]) -> None:
    """Print rows aligned; columns in `left` to the left, numbers to the right."""
    for line in _aligned((head, *rows), left):
        print(line.rstrip())


def _aligned(rows: Sequence[tuple[str, ...]], left: set[int]) -> list[str]:
    """Rows as lines of one length."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
