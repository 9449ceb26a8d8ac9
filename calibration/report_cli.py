"""`calibrate report`: pictures of a calibration and of a model's steps under it, as HTML and PNG.

    calibrate report --model llama-3.1-8b --gpu h100-sxm --source aiconfigurator --out report

The scatter, the residual maps and the table of errors need the timings (`--source`); the others the
calibration alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    import pandas as pd
    from stepline.sim.cost.roofline import RooflineCostModel

    from .report.page import Section

FORMATS = ("html", "png")


def main(argv: Sequence[str] | None = None) -> int:
    """`calibrate report` with the arguments after the verb; returns the exit status."""
    parser = argparse.ArgumentParser(prog="calibrate report")
    add_arguments(parser)
    return run(parser.parse_args(argv))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of `calibrate report`."""
    parser.description = (
        "Draw a calibration: rooflines, fits, residuals, decode rate over batch, the accountant."
    )
    parser.add_argument(
        "--model", default="llama-3.1-8b", help="catalogue name or config.json (default: %(default)s)"
    )
    parser.add_argument(
        "--gpu", default="h100-sxm", help="catalogue name or a GPU file (default: %(default)s)"
    )
    parser.add_argument("--dtype", help="weight type (default: the model's own)")
    parser.add_argument("--tp", "--tensor-parallel-size", type=int, default=1, help="tensor-parallel size")
    parser.add_argument("--batch", type=int, default=64, help="sequences of the decode on the roofline")
    parser.add_argument("--context", type=int, default=2048, help="their context in tokens")
    parser.add_argument(
        "--calibration", type=Path, help="calibration JSON (default: the registered one of the GPU)"
    )
    parser.add_argument("--library", help="library of the registered calibration, such as vllm-0.24.0")
    parser.add_argument(
        "--source", help="timings to compare with: aiconfigurator, or a .parquet or .csv table"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("calibration-report"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--format", default="html,png", help="html, png or both, by commas (default: %(default)s)"
    )


def run(args: argparse.Namespace) -> int:
    """Draw everything and say where it lies."""
    from .report.page import page, write

    formats = [f.strip() for f in args.format.split(",") if f.strip()]
    if not formats or not set(formats) <= set(FORMATS):
        raise ConfigError(f"--format: got {args.format!r}, expected html, png or both")
    if args.batch < 1 or args.context < 1:
        raise ConfigError(f"got --batch {args.batch} --context {args.context}, expected both >= 1")
    cost = cost_model(args)
    table = (
        timings(args.source, cost) if args.source else None
    )  # a wrong one is told before anything is drawn
    sections = [*step_sections(cost, args.batch, args.context)]
    if table is not None:
        sections += fit_sections(table, cost)
    text = page(f"Calibration {cost.calibration.id}", _lead(cost), sections)
    for path in write(args.out, text, sections, formats):
        print(path)
    for note in cost.warnings:
        print(f"note: {note}", file=sys.stderr)
    return 0


def cost_model(args: argparse.Namespace) -> RooflineCostModel:
    """Cost model of the asked model, GPU and calibration."""
    from stepline.sim.cost.calibration import find_calibration, load_calibration
    from stepline.sim.cost.catalogue import load_gpu, load_model
    from stepline.sim.cost.roofline import RooflineCostModel

    model, gpu = load_model(args.model), load_gpu(args.gpu)
    if args.dtype:
        from stepline.sim.cost.operators import bytes_per_element

        bytes_per_element(args.dtype)  # refuses an unknown type
        model = replace(model, weight_dtype=args.dtype)
    if args.calibration and args.library:
        raise ConfigError("--library: only without --calibration, whose library is in the file")
    found = (
        load_calibration(args.calibration)
        if args.calibration
        else find_calibration(gpu.name, model.weight_dtype, args.library)
    )
    return RooflineCostModel(model, gpu, found, tp=args.tp)


def timings(source: str, cost: RooflineCostModel) -> pd.DataFrame:
    """The timing table to compare with.

    Raises:
        CalibrationError: no such table, or one of another GPU.
    """
    from .schema import check_timings
    from .tables import read_tables, tables_dir

    if source == "aiconfigurator":
        return read_tables(tables_dir(), cost.calibration.gpu, cost.calibration.library)[0]
    import pandas as pd

    path = Path(source)
    if not path.exists():
        raise CalibrationError(
            f"--source: got {source!r}, expected aiconfigurator or a timing table that exists"
        )
    try:
        raw = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: cannot be read as a timing table: {error}") from None
    table = check_timings(raw, str(path))
    others = sorted(set(table["gpu"].astype(str)) - {cost.calibration.gpu})
    if others:
        raise CalibrationError(f"{path}: rows of {others[0]}, the calibration is of {cost.calibration.gpu}")
    return table


def step_sections(cost: RooflineCostModel, batch: int, context: int) -> list[Section]:
    """Pictures of the model's steps: they need the calibration alone."""
    from .report import accountant, step_charts, step_data
    from .report.page import Section

    name = f"{cost.model.name} ({cost.model.weight_dtype}) on {cost.tp} × {cost.gpu.name}, {cost.calibration.library}"
    points = step_data.roofline_points(cost, batch, context)
    curve = step_data.decode_curve(cost)
    knees = step_data.knees(cost, curve)
    ridge = next(iter(cost.gpu.peak_flops.values())) / cost.gpu.hbm_bytes_per_s
    knee_text = (
        f"Weights are read once a step however many sequences share them, so the rate follows the batch until what grows "
        f"with every sequence takes as long: its KV, or, past the ridge of {ridge:.0f} tokens, its arithmetic.",
        *(f"{k.why[0].upper()}{k.why[1:]}." for k in knees),
    )
    roof_text = (
        f"A point under the roof: FLOPs over the calibrated time. The decode has {batch} sequences of {context} tokens.",
    )
    chart = accountant.accountant(*_accountant_start(cost, batch, context))
    return [
        Section("roofline", "Roofline", roof_text, step_charts.roofline(points, cost.gpu, cost.model.weight_dtype, name)),
        Section("decode-rate", "Decode rate and its knee", knee_text, step_charts.decode_rate(curve, knees, name)),
        Section("traffic", "Weights or KV", (), step_charts.traffic(step_data.traffic_shares(cost, context),
                                                                   f"{name}, {context} tokens of context")),
        Section("time", "Time by kernel", (), step_charts.breakdown(step_data.step_breakdown(cost, context),
                                                                   f"{name}, {context} tokens of context")),
        Section("accountant", "Accountant", (), chart),
    ]  # fmt: skip


def _accountant_start(cost: RooflineCostModel, batch: int, context: int) -> tuple[str, str, int, int]:
    """Where the sliders stand at first; a model or GPU from a file is not in the page's table."""
    from stepline.sim.cost.catalogue import known_gpus, known_models

    model = cost.model.name if cost.model.name in known_models() else "llama-3.1-8b"
    gpu = cost.gpu.name if cost.gpu.name in known_gpus() else "h100-sxm"
    return model, gpu, min(batch, 1024), min(context, 2**17)


def fit_sections(table: pd.DataFrame, cost: RooflineCostModel) -> list[Section]:
    """Pictures of the fit: they need the timings."""
    from .report import fit_charts, fit_data
    from .report.page import Section

    found = fit_data.predictions(table, cost.calibration, cost.gpu)
    if found.empty:
        raise CalibrationError("--source: no row that a kernel of this calibration could be compared with")
    name = f"{cost.calibration.id}, formulas without their residual layers, on the rows they were fitted to"
    maps = fit_charts.residual_maps(found, name)
    sections = [
        Section("fit", "Predicted against measured", (), fit_charts.scatter(found, name)),
        Section("errors", "Errors by regime", ("Mean absolute errors; the datasheet's roofline beside them. Held-out "
                                               "errors: calibrate validate.",), table=_error_html(found)),
    ]  # fmt: skip
    return [*sections, Section("residuals", "Residual maps", (), maps)] if maps is not None else sections


def _error_html(found: Any) -> str:
    from .report.fit_charts import title_of
    from .report.fit_data import error_table

    errors = error_table(found)
    errors["kernel"] = errors["kernel"].map(title_of)
    shown = errors.assign(
        formula=errors["formula"].map("{:.1%}".format), datasheet=errors["datasheet"].map("{:.0%}".format)
    )
    return str(shown.to_html(index=False, border=0))


def _lead(cost: RooflineCostModel) -> str:
    notes = "; ".join(cost.warnings)
    said = f" Notes: {notes}." if notes else ""
    return (
        f"Kernel constants of {cost.calibration.gpu} with {cost.calibration.library}, seen through {cost.model.name} at "
        f"TP {cost.tp}.{said} Everything here is computed from the calibration and the operators; nothing is loaded."
    )
