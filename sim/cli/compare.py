"""`simulate compare`: a grid or list of settings on the same arrivals, with replications."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .parser import Parser, integer

if TYPE_CHECKING:
    from stepline.sim.study.config import RunConfig
    from stepline.sim.study.grid import Grid

FILES = ("comparison.csv", "comparison.html", "manifest.json")


def main(argv: Sequence[str]) -> int:
    """Run, write, print; returns the exit code. Raises: InputError for wrong input."""
    parser = _parser()
    args = parser.parse_args(list(argv))
    if args.trace is None:
        raise ConfigError("--trace: expected a file of requests, e.g. --trace traces/samples/chat.jsonl")
    configs = _configs(args)
    if args.out is not None:
        from stepline.sim.report.run_dir import check_target

        check_target(args.out)
    grid = _run(args, configs)
    if args.json:
        _print_json(grid)
    elif not args.quiet:
        _print(grid)
    if not args.no_save:
        place = _save(grid, args, ["simulate", "compare", *argv])
        if not args.quiet and not args.json:
            print(f"results   {place}/{FILES[1]}, {FILES[0]}")
    return 0


def _parser() -> Parser:
    from .options import add_run_options, add_trace_options

    parser = Parser(
        prog="simulate compare",
        description="Compare settings on the same arrivals. Every flag that takes several values spans a grid; the first "
        "combination is the baseline of all differences.",
    )
    add_trace_options(parser)
    add_run_options(parser)
    group = parser.add_argument_group("comparison")
    group.add_argument("--replications", type=integer, default=1, metavar="N",
                       help="repeat on N resamplings of the sessions, the same for all runs (1: as is)")  # fmt: skip
    group.add_argument("--combine", choices=("grid", "list"), default="grid",
                       help="grid: every combination; list: the k-th values of all flags together (grid)")  # fmt: skip
    group = parser.add_argument_group("results")
    group.add_argument("--out", type=Path, metavar="DIR", help="directory to write (results/runs/<name>)")
    group.add_argument("--no-save", action="store_true", help="write no directory")
    group.add_argument("--json", action="store_true", help="print JSON in place of tables")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _configs(args: Namespace) -> dict[str, RunConfig]:
    from .options import run_configs

    configs = run_configs(args) if args.combine == "grid" else _listed(args)
    if len(configs) < 2:
        raise ConfigError(
            f"compare: got {len(configs)} run, expected several values of a flag, e.g. --policy chunked,sjf"
        )
    return configs


def _listed(args: Namespace) -> dict[str, RunConfig]:
    """The k-th values of all flags together; a flag with one value holds it for all."""
    from stepline.sim.study.config import RunConfig

    from .options import choices_of, label_of, shared_settings

    choices = choices_of(args, unique=False)
    lengths = {k: len(v) for k, v in choices.items() if len(v) > 1}
    if len(set(lengths.values())) > 1:
        listing = ", ".join(f"--{k.replace('_', '-')} ({n})" for k, n in lengths.items())
        raise ConfigError(f"--combine list: {listing}: got different numbers of values, expected equal ones")
    n = max(lengths.values(), default=1)
    configs = {}
    for place in range(n):
        settings = {k: v[place] if len(v) > 1 else v[0] for k, v in choices.items()}
        label = label_of({k: v for k, v in settings.items() if k in lengths})
        configs[label] = RunConfig(**shared_settings(args), **settings)
    return configs


def _run(args: Namespace, configs: dict[str, RunConfig]) -> Grid:
    from stepline.sim.study.grid import run_grid
    from stepline.traces.reading import read_trace

    from .options import reading_options
    from .progress import progress_bar, working
    from .run import together

    if not Path(args.trace).exists():
        raise ConfigError(f"--trace: no file {args.trace!r}")
    with working(f"reading {args.trace}", shown=not args.quiet):
        trace = read_trace(args.trace, **reading_options(args))
    _warn(trace.warnings, args)
    grid = run_grid(
        trace, configs, args.replications, watch=lambda what: progress_bar(what, shown=not args.quiet)
    )
    _warn(together(grid.warnings), args)
    return grid


def _warn(warnings: Sequence[str], args: Namespace) -> None:
    if not args.quiet:
        for text in warnings:
            print(f"simulate: warning: {text}", file=sys.stderr)


def _save(grid: Grid, args: Namespace, command: Sequence[str]) -> Path:
    """Write the CSV, the page and a manifest; returns the directory."""
    import hashlib

    from stepline.sim.report.run_dir import atomic_dir, json_bytes, versions, write_json
    from stepline.sim.study.grid_html import grid_html

    from .output import RUNS, file_name
    from .run import together

    stem = Path(args.trace).name.split(".", 1)[0]
    digest = hashlib.sha256(json_bytes(list(command))).hexdigest()[:8]
    target: Path = args.out or RUNS / f"{file_name(stem)}-compare-{len(grid.configs)}-runs-{digest}"
    with atomic_dir(target) as work:
        grid.frame().to_csv(work / FILES[0], index=False)
        title = f"{Path(args.trace).name}: {len(grid.configs)} runs compared"
        (work / FILES[1]).write_text(grid_html(grid, title, shlex.join(command)), encoding="utf-8")
        write_json(
            work / FILES[2],
            {
                "schema_version": 1,
                "kind": "grid",
                "command": shlex.join(command),
                "baseline": grid.baseline,
                "pareto": list(grid.pareto),
                "method": grid.method,
                "runs": list(grid.configs),
                "warnings": together(grid.warnings),
                "versions": versions(),
            },
        )
    return target


def _print_json(grid: Grid) -> None:
    """The rows of the CSV, with what is said of them all."""
    from dataclasses import asdict

    from stepline.sim.report.run_dir import json_bytes

    content = {
        "baseline": grid.baseline,
        "method": grid.method,
        "pareto": list(grid.pareto),
        "rows": [asdict(row) for row in grid.rows],
    }
    sys.stdout.write(json_bytes(content).decode())


COLUMNS = {
    "output_tokens_per_s": "tokens/s",
    "ttft_mean": "TTFT",
    "ttft_p99": "TTFT p99",
    "tpot_p99": "TPOT p99",
    "itl_p99": "ITL p99",
    "e2e_mean": "E2E",
    "prefix_hit_token_frac": "hits",
    "preemptions": "preempted",
    "rejected": "rejected",
    "timed_out": "timed out",
}
"""Figures on the terminal, with their titles."""


def _print(grid: Grid) -> None:
    """A row a run; the Pareto set is starred, and the best of each figure named."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table
    from stepline.sim.study.grid_html import figure_text

    rows = {(r.run, r.figure): r for r in grid.rows}
    shown = [n for n in COLUMNS if any(r.figure == n and r.value for r in grid.rows)]
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("run", no_wrap=True)
    for name in shown:
        table.add_column(COLUMNS[name], justify="right", no_wrap=True)
    for run in grid.configs:
        cells = [_cell(rows.get((run, name)), figure_text) for name in shown]
        table.add_row(f"{'★' if run in grid.pareto else ' '} {run}", *cells)
    console = Console(highlight=False)
    wide = console.options.update(max_width=1000)  # a table cut to a pipe's 80 columns would lose its figures
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)
    for name in shown:
        console.print(_best(grid, name, COLUMNS[name], figure_text), soft_wrap=True)
    console.print(
        f"★ Pareto set of tokens/s against p99 TTFT and p99 TPOT; ± {grid.method}",
        style="dim",
        soft_wrap=True,
    )


def _cell(row: Any, text: Any) -> str:
    return "–" if row is None else str(text(row.figure, row.unit, row.value))


def _best(grid: Grid, figure: str, title: str, text: Any) -> str:
    """Which run has the best figure, and its difference to the baseline with the interval."""
    from stepline.sim.study.grid import FIGURES, are_alike

    more = next(f.more_is_better for f in FIGURES if f.name == figure)
    rows = [r for r in grid.rows if r.figure == figure and r.value is not None]
    best = (max if more else min)(rows, key=lambda r: r.value or 0.0)
    ties = [r.run for r in rows if are_alike(r.value or 0.0, best.value or 0.0)]
    if len(ties) == len(rows):
        return f"{title:10} the same in all runs"
    if grid.baseline in ties:
        others = f", and alike: {', '.join(r for r in ties if r != grid.baseline)}" if len(ties) > 1 else ""
        return f"{title:10} best: {grid.baseline} (the baseline){others}"
    interval = (
        ""
        if best.low is None
        else f" [{text(figure, best.unit, best.low)}, {text(figure, best.unit, best.high)}]"
    )
    change = text(figure, best.unit, best.difference)
    doubt = "" if best.is_clear or best.low is None else ": not clear"
    return f"{title:10} best: {best.run}, {change}{interval} against {grid.baseline}{doubt}"
