"""The bare `simulate` command: one run, or a paired comparison of several."""

from __future__ import annotations

import shlex
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError
from stepline.traces.wording import counted

from .parser import Parser, integer
from .progress import progress_bar, working

if TYPE_CHECKING:
    from stepline.sim.engine.result import RunResult
    from stepline.sim.study.config import RunConfig
    from stepline.traces.trace import Trace


def main(argv: Sequence[str]) -> int:
    """Parse, run, write, print. Returns 0; raises `InputError` for wrong input."""
    if "--help" in argv or "-h" in argv:
        from .help import short_help

        print(short_help())
        return 0
    parser = _parser()
    if "--help-all" in argv:
        print(parser.format_help())
        return 0
    args = parser.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        from stepline.sim import compiled

        print(f"stepline {version('stepline')} (engine core: {compiled.form()})")
        return 0
    return _simulate(args, ["simulate", *argv])


def _parser() -> Parser:
    from .files import add_file_options
    from .options import add_run_options, add_trace_options

    parser = Parser(prog="simulate", add_help=False, description="Replay a trace on a simulated LLM server.")
    add_trace_options(parser)
    add_run_options(parser)
    group = parser.add_argument_group("results")
    group.add_argument("--out", type=Path, metavar="DIR", help="directory to write (results/runs/<name>)")
    group.add_argument("--no-save", action="store_true", help="write no directory")
    group.add_argument("--record-steps", action="store_true", help="keep every step (steps.parquet)")
    add_file_options(group)
    group.add_argument("--uncertainty", type=integer, nargs="?", const=20, metavar="DRAWS",
                       help="intervals from runs on DRAWS (20) other kernel constants that the data allow")  # fmt: skip
    group.add_argument("--json", action="store_true", help="print the summary as JSON in place of tables")
    group.add_argument("--quiet", action="store_true", help="print nothing but errors")
    group.add_argument("--version", action="store_true", help="print the version")
    group.add_argument("--help", action="store_true", help="a short help")
    group.add_argument("--help-all", action="store_true", help="this help")
    return parser


def _simulate(args: Namespace, command: list[str]) -> int:
    from .options import run_configs

    if args.trace is None:
        raise ConfigError("--trace: expected a file of requests, e.g. --trace traces/samples/chat.jsonl")
    configs = {
        label: replace(config, **_recorded(args, config)) for label, config in run_configs(args).items()
    }
    _check_outputs(args, list(configs))
    if args.uncertainty is not None and len(configs) > 1:
        raise ConfigError(f"--uncertainty: speaks of one run, got {len(configs)} ({', '.join(configs)})")
    trace = _trace(args, configs)
    results = _results(trace, args, configs)
    _output(args, results, command, _intervals(trace, args, configs))
    return 0


def _check_outputs(args: Namespace, labels: list[str]) -> None:
    """Refuse what could not be written before anything is simulated."""
    from .files import check_files

    if args.no_save:
        for flag in ("out", "record_steps"):
            if getattr(args, flag):
                raise ConfigError(f"--no-save: cannot be combined with --{flag.replace('_', '-')}")
    check_files(args, labels)
    if args.out is not None:
        from stepline.sim.report.run_dir import check_target

        check_target(args.out)


def _recorded(args: Namespace, config: RunConfig) -> dict[str, Any]:
    """What is recorded: what was asked for, and what the files need."""
    from .files import needs

    return {name: getattr(config, name) or needed for name, needed in needs(args).items()}


def _trace(args: Namespace, configs: dict[str, RunConfig]) -> Trace:
    from stepline.sim.study.load import load

    from .options import reading_options

    with working(f"reading {args.trace}", shown=not args.quiet):
        trace = load(args.trace, next(iter(configs.values())), **reading_options(args))
    _warn(trace.warnings, args)
    return trace


def _results(trace: Trace, args: Namespace, configs: dict[str, RunConfig]) -> dict[str, RunResult]:
    from stepline.sim.study.run import simulate_resolved
    from stepline.sim.study.setup import resolve

    setups = {label: resolve(config) for label, config in configs.items()}
    results = {}
    for label, setup in setups.items():
        with progress_bar(label, shown=not args.quiet) as on_progress:
            results[label] = simulate_resolved(trace, setup, label=label, on_progress=on_progress)
    _warn(together({label: result.warnings for label, result in results.items()}), args)
    return results


def together(warnings: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Each warning once; with the runs that it is about, unless it is about all of them."""
    about: dict[str, list[str]] = {}
    for label, texts in warnings.items():
        for text in texts:
            about.setdefault(text, []).append(label)
    return [
        text if len(labels) == len(warnings) else f"{', '.join(labels)}: {text}"
        for text, labels in about.items()
    ]


def _intervals(trace: Trace, args: Namespace, configs: dict[str, RunConfig]) -> dict[str, Any] | None:
    """What the uncertainty of the kernel constants does to the run (None where it was not asked for)."""
    if args.uncertainty is None:
        return None
    from stepline.sim.study.uncertainty import intervals

    with working(f"{counted(args.uncertainty, 'draw')} of the kernel constants", shown=not args.quiet):
        return intervals(trace, next(iter(configs.values())), draws=args.uncertainty)


def _warn(warnings: Sequence[str], args: Namespace) -> None:
    if not args.quiet:
        for text in warnings:
            print(f"simulate: warning: {in_short(text, saved=not args.no_save)}", file=sys.stderr)


ITEMS_SHOWN = 2
"""Of a warning that lists more than one thing beside them: the terminal shows the first, the summary has all."""


def in_short(text: str, *, saved: bool) -> str:
    """A warning without the end of a long list, and where to find the rest."""
    items = text.split("; ")
    more = len(items) - ITEMS_SHOWN
    if more < 2:
        return text
    where = "all in summary.json" if saved else "all in the summary.json of a saved run"
    return "; ".join(items[:ITEMS_SHOWN]) + f"; and {more} more ({where})"


def _output(
    args: Namespace, results: dict[str, RunResult], command: list[str], uncertainty: dict[str, Any] | None
) -> None:
    """Tables first: they are there before the files are."""
    from .files import write_files
    from .output import print_place, print_view, save

    with working("summing up", shown=not args.quiet):
        content = _content(results)
    if uncertainty is not None:
        content["uncertainty"] = uncertainty
    if args.json:
        from stepline.sim.report.run_dir import json_bytes

        sys.stdout.write(json_bytes(_as_json(content)).decode())
    elif not args.quiet:
        print_view(content, results)
    with working("writing files", shown=not args.quiet):
        write_files(args, content, results, shlex.join(command))
    if not args.no_save:
        report = args.report == ""
        with working("writing results", shown=not args.quiet):
            directory = save(content, results, args.out, args.trace, command, report=report)
        if not args.quiet and not args.json:
            print_place(directory)


def _content(results: dict[str, RunResult]) -> Any:
    """The summary of one run, or the comparison of several."""
    if len(results) == 1:
        from stepline.sim.report.summary import summary

        return summary(next(iter(results.values())))
    from stepline.sim.report.paired import compare_results

    return compare_results(results)


def _as_json(content: Any) -> Any:
    if isinstance(content, dict):
        return content
    from dataclasses import asdict

    from stepline.sim.report.ranking import criterion, rank

    return {
        "runs": content.summaries,
        "ranking": {"criterion": criterion(content), "places": [asdict(place) for place in rank(content)]},
        "baseline": content.baseline,
        "method": content.method,
        "differences": [asdict(difference) for difference in content.differences],
    }
