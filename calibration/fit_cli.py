"""`calibrate fit`: read timings, fit every kernel, write one calibration JSON a dtype."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from stepline.traces.errors import CalibrationError

from .threads import one_thread


def main(argv: Sequence[str]) -> int:
    """Run `calibrate fit`; returns the exit status."""
    args = _parser().parse_args(argv)
    one_thread()
    from stepline.sim.cost.calibration import dump_calibration

    from .fit import fit_calibration
    from .sources import read_source

    source = read_source(args.source, args.gpu, args.library, args.tables)
    dtype = args.dtype or _only_dtype(source.table, source.own_gpu)
    calibration, skipped = fit_calibration(
        source.table, source.gpu, source.library, dtype, source.provenance, residual=not args.no_residual
    )
    if source.own_gpu:
        calibration = replace(calibration, gpu_spec=asdict(source.gpu))
    if args.validate:
        from .fit import with_errors
        from .validate import scores_by_kernel, validate

        calibration = with_errors(calibration, scores_by_kernel(validate(source, dtype, seeds=args.validate)))
    out = Path(args.out or f"{source.gpu.name}-{source.library}-{dtype}.json")
    if out.is_dir():
        out = out / f"{source.gpu.name}-{source.library}-{dtype}.json"
    dump_calibration(calibration, out)
    _print(calibration)
    for reason in skipped:
        print(f"  left out: {reason}", file=sys.stderr)
    print(f"wrote {out}", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="calibrate fit", description=__doc__)
    parser.add_argument(
        "--source", required=True, help="aiconfigurator, or a .parquet/.csv of our timing schema"
    )
    parser.add_argument("--gpu", help="catalogue name or spec file (default: h100-sxm, or what the rows say)")
    parser.add_argument(
        "--library", help="NAME-VERSION of the tables (default: vllm-0.24.0, or the GEMM rows')"
    )
    parser.add_argument("--dtype", help="weight dtype to fit (default: bf16, or the only one in the file)")
    parser.add_argument("--tables", help="folder of the tables instead of the installed package")
    parser.add_argument("--out", help="file or folder (default: GPU-LIBRARY-DTYPE.json here)")
    parser.add_argument("--no-residual", action="store_true", help="formulas only")
    parser.add_argument(
        "--validate",
        type=int,
        default=0,
        metavar="SEEDS",
        help="also record held-out errors over SEEDS splits",
    )
    return parser


def _only_dtype(table: object, own: bool) -> str:
    """bf16, or the GEMM dtype of a file that has no bf16."""
    import pandas as pd

    frame = table if isinstance(table, pd.DataFrame) else pd.DataFrame()
    dtypes = sorted(frame.loc[frame["kernel"] == "gemm", "dtype"].dropna().unique())
    if not dtypes:
        raise CalibrationError("--source: got no gemm rows, expected some: every model has linear layers")
    return "bf16" if "bf16" in dtypes or not own else str(dtypes[0])


def _print(calibration: object) -> None:
    from stepline.sim.cost.calibration import Calibration

    if not isinstance(calibration, Calibration):
        return
    print(f"{calibration.id}")
    for name, fit in calibration.kernels.items():
        constants = ", ".join(f"{key} {value:.4g}" for key, value in fit.constants.items())
        errors = fit.errors.get("train", {})
        shown = ", ".join(f"{key} {100 * value:.1f} %" for key, value in errors.items())
        print(f"  {name:22} {fit.rows:6} rows  {constants}" + (f"  (train: {shown})" if shown else ""))
