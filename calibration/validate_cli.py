"""`calibrate validate`: re-score the fits on what they never saw and print the table."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stepline.traces.errors import CalibrationError, nearest

from .threads import one_thread

if TYPE_CHECKING:
    import pandas as pd

    from .validate import Score


def main(argv: Sequence[str]) -> int:
    """Run `calibrate validate`; returns the exit status."""
    args = _parser().parse_args(argv)
    one_thread()
    from .sources import read_source
    from .splits import SPLITS
    from .tasks import TASKS
    from .tasks_serving import SERVING
    from .validate import tasks_of, validate

    splits = _names(args.split, SPLITS, "--split")
    known = [task.name for task in (*TASKS, *SERVING)] + ["mla_prefill", "mla_decode"]
    kernels = _names(args.kernel, known, "--kernel")
    if args.seeds < 1:
        raise CalibrationError(f"--seeds: got {args.seeds}, expected at least 1")
    source = read_source(args.source, args.gpu, args.library, args.tables)
    scores = validate(source, args.dtype, seeds=args.seeds, splits=splits or SPLITS, kernels=kernels)
    frame = table_of(scores)
    scopes = {task.name: task.scope for task in tasks_of(source, args.dtype)}
    print(
        f"{source.gpu.name} {source.library} {args.dtype}: mean absolute error in %, {args.seeds} seeded splits"
    )
    for kernel, part in frame.groupby("kernel", sort=False):
        print(f"\n{kernel} ({scopes[str(kernel)]})")
        print(part.drop(columns="kernel").to_string(index=False, float_format=lambda v: f"{v:.1f}"))
    _print_summary(scores)
    if not args.no_steps and source.gpu.n_sm:
        _print_steps(source, args.dtype)
    if args.out:
        frame.round(3).to_csv(Path(args.out), index=False)
        print(f"wrote {args.out}", file=sys.stderr)
    return 0


def table_of(rows: Sequence[Score]) -> pd.DataFrame:
    """One row a kernel, split and regime; errors of each model in percent side by side."""
    import pandas as pd

    from .validate import MODELS

    frame = pd.DataFrame(
        {
            "kernel": [s.kernel for s in rows],
            "split": [s.split for s in rows],
            "regime": [s.regime for s in rows],
            "model": [s.model for s in rows],
            "percent": [100 * s.mape for s in rows],
            "rows": [s.rows for s in rows],
        }
    )
    wide = frame.pivot_table(
        index=["kernel", "split", "regime", "rows"], columns="model", values="percent", sort=False
    ).reset_index()
    wide.columns.name = None
    return wide[[c for c in ("kernel", "split", "regime", *MODELS, "rows") if c in wide.columns]]


def _print_summary(scores: Sequence[Score]) -> None:
    """Each kernel in a line, on what it saw least of: whole shape families, or single message sizes."""
    from .validate import UNSEEN_OF

    chosen = [s for s in scores if s.split == UNSEEN_OF.get(s.kernel, "unseen") and s.regime == "all"]
    if not chosen:
        return
    print("\nin short: whole shape families held out (of collectives one size at a time)")
    print(table_of(chosen).to_string(index=False, float_format=lambda v: f"{v:.1f}"))


def _print_steps(source: object, dtype: str) -> None:
    from .sources import Source
    from .whole_step import compare_steps

    if not isinstance(source, Source):
        return
    frame = compare_steps(source, dtype)
    if frame is None:
        return
    print(
        "\nwhole steps against the sum of the tables' own times (log-interpolated) plus our elementwise, error in %"
    )
    print(frame.to_string(index=False, float_format=lambda v: f"{v:.2f}"))
    for phase, part in frame.groupby("phase", sort=False):
        means = ", ".join(f"{c} {part[c].abs().mean():.2f} %" for c in ("formula", "residual"))
        print(f"mean absolute error, {phase}: {means} over {len(part)} steps")


def _names(given: str | None, known: Sequence[str], flag: str) -> list[str]:
    names = [name.strip() for name in (given or "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise CalibrationError(f"{flag}: got {name!r}{nearest(name, known)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="calibrate validate", description=__doc__)
    parser.add_argument(
        "--source", default="aiconfigurator", help="as in `calibrate fit` (default: %(default)s)"
    )
    parser.add_argument("--gpu", help="catalogue name or spec file")
    parser.add_argument("--library", help="NAME-VERSION of the tables")
    parser.add_argument("--dtype", default="bf16", help="weight dtype (default: %(default)s)")
    parser.add_argument("--tables", help="folder of the tables instead of the installed package")
    parser.add_argument("--seeds", type=int, default=5, help="splits of each kind (default: %(default)s)")
    parser.add_argument(
        "--split", help="comma list of random, unseen, largest, large-nk, wider (default: all)"
    )
    parser.add_argument("--kernel", help="comma list of kernels (default: all)")
    parser.add_argument("--no-steps", action="store_true", help="leave the whole-step comparison out")
    parser.add_argument("--out", help="write the table as CSV")
    return parser
