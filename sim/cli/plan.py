"""`simulate plan`: how many GPUs, which, set up how, at what price."""

from __future__ import annotations

import itertools
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .parser import Parser, integer, number

if TYPE_CHECKING:
    from stepline.sim.study.config import RunConfig
    from stepline.sim.study.plan_types import PlanProgress, PlanResult

PLANS = Path("results/plans")

MAX_CANDIDATES = 512

_DESCRIPTION = """\
Find the cheapest way to carry a load under latency objectives. Every combination of the hardware, scheduling and KV cache
options is a candidate; those that cannot fit, cannot meet the objectives even when idle, or cost too much even at their
physical bounds are left out; of the others the highest sustainable rate of a replica is found, and fleets of the best are
simulated under the whole load until one carries it.

examples:
  simulate plan --trace chat.jsonl --slo 'ttft_p99<0.5,tpot_p99<0.05,attainment>0.99' --gpu h100-sxm,h200,l40s --tp 1,2,4,8
  simulate plan --trace chat.jsonl --slo 'ttft_p99<1' --rate 40 --gpu h100-sxm --policy chunked,sarathi --max-replicas 32
"""


def main(argv: Sequence[str]) -> int:
    """Make a plan. Returns 0, or 1 if no candidate carries the load."""
    parser = _parser()
    if "--help" in argv or "-h" in argv or not argv:
        print(parser.format_help())
        return 0
    args = parser.parse_args(argv)
    if args.print_prices:
        from stepline.sim.study.prices import table_text

        print(table_text(), end="")
        return 0
    result = _plan(args)
    _output(args, result, ["simulate plan", *argv])
    return 0 if result.winner else 1


def _parser() -> Parser:
    from .options import add_run_options, add_trace_options
    from .sweep import add_executor_options

    parser = Parser(prog="simulate plan", add_help=False, description=_DESCRIPTION)
    add_trace_options(parser)
    group = parser.add_argument_group("plan")
    group.add_argument("--rate", type=number, metavar="PER_S",
                       help="load to plan for, requests per second (the trace's own)")  # fmt: skip
    group.add_argument("--max-replicas", type=integer, default=64, metavar="N", help="largest fleet (64)")
    group.add_argument(
        "--prices", metavar="FILE", help="prices and power (a table as --print-prices shows it)"
    )
    group.add_argument("--print-prices", action="store_true", help="print the default table, to be edited")
    group.add_argument("--max-price-factor", type=number, default=4.0, metavar="X",
                       help="leave out what costs more than X times the cheapest even at its bounds (4)")  # fmt: skip
    group.add_argument("--requests", type=integer, metavar="N", help="requests in one look at a rate (4000)")
    group.add_argument("--tolerance", type=number, metavar="FRAC",
                       help="relative half-width of the rates' 95 %% intervals; tells replicas apart if larger (0.03)")  # fmt: skip
    group.add_argument("--calibration-draws", type=integer, default=0, metavar="N",
                       help="find the rates of the three best again with N other draws of the kernel constants (0)")  # fmt: skip
    add_run_options(parser)
    add_executor_options(parser)
    results = parser.add_argument_group("results")
    results.add_argument("--out", type=Path, metavar="DIR", help=f"directory to write ({PLANS}/<name>)")
    results.add_argument("--no-save", action="store_true", help="write no directory")
    results.add_argument("--json", action="store_true", help="print the plan as JSON")
    results.add_argument("--quiet", action="store_true", help="print nothing but errors")
    results.add_argument("--help", action="store_true", help="this help")
    return parser


def _plan(args: Namespace) -> PlanResult:
    from stepline.sim.study.executors import open_executor
    from stepline.sim.study.load import load
    from stepline.sim.study.plan import plan
    from stepline.sim.study.prices import read_prices

    from .options import reading_options
    from .progress import working

    if args.trace is None:
        raise ConfigError("--trace: expected a file of requests, e.g. --trace traces/samples/chat.jsonl")
    if args.out is not None:
        from stepline.sim.report.run_dir import check_target

        check_target(args.out)
    configs = candidates(args)
    prices = read_prices(args.prices)
    with working(f"reading {args.trace}", shown=not args.quiet):
        trace = _at(load(args.trace, next(iter(configs.values())), **reading_options(args)), args)
    for text in trace.warnings if not args.quiet else ():
        print(f"simulate plan: warning: {text}", file=sys.stderr)
    configs = {label: _unscaled(config) for label, config in configs.items()}
    with (
        open_executor(args.executor, jobs=args.jobs, scheduler=args.scheduler) as executor,
        _progress(shown=not args.quiet) as on_progress,
    ):
        return plan(
            trace,
            configs,
            max_replicas=args.max_replicas,
            prices=prices,
            effort=_effort(args),
            max_price_factor=args.max_price_factor,
            calibration_draws=args.calibration_draws,
            executor=executor,
            on_progress=on_progress,
        )


def _at(trace: Any, args: Namespace) -> Any:
    """The trace at the rate that is planned for."""
    if args.rate is None:
        return trace
    from stepline.sim.study.plan_probe import mean_rate, squeezed
    from stepline.traces.transform import rate_scale

    if not args.rate > 0:
        raise ConfigError(f"--rate: got {args.rate}, expected requests per second > 0")
    scaled = rate_scale(trace, args.rate / mean_rate(trace), args.rate_scale_mode, args.seed)
    return squeezed(scaled, args.rate)  # whole sessions hit a rate only about


def _unscaled(config: RunConfig) -> RunConfig:
    """The load has been shaped: the runs take it as it is."""
    from dataclasses import replace

    return replace(config, rate_scale=1.0, spread_quantum=False)


def _effort(args: Namespace) -> Any:
    from dataclasses import replace

    from stepline.sim.study.plan_capacity import Effort

    effort = Effort()
    if args.requests is not None:
        if args.requests < 100:
            raise ConfigError(f"--requests: got {args.requests}, expected at least 100")
        effort = replace(effort, requests=args.requests)
    if args.tolerance is not None:
        if not 0 < args.tolerance < 1:
            raise ConfigError(f"--tolerance: got {args.tolerance}, expected a fraction in 0..1")
        effort = replace(
            effort, interval_frac=args.tolerance, bracket_frac=min(0.04, args.tolerance), most=32
        )
    return effort


def candidates(args: Namespace) -> dict[str, RunConfig]:
    """Every combination of the options given several values, by label.

    Raises:
        ConfigError: a value that an option does not take, or too many combinations.
    """
    from stepline.sim.study.config import RunConfig

    from .options import choices_of, label_of, shared_settings

    choices = choices_of(args)
    if "replicas" in choices:
        raise ConfigError("--replicas: a plan finds them; give --max-replicas")
    count = 1
    for values in choices.values():
        count *= len(values)
    if count > MAX_CANDIDATES:
        raise ConfigError(f"plan: {count} candidates, expected at most {MAX_CANDIDATES} in one call")
    shared = shared_settings(args)
    configs = {}
    for picked in itertools.product(*choices.values()):
        settings = dict(zip(choices, picked, strict=True))
        named = {k: v for k, v in settings.items() if len(choices[k]) > 1}
        configs[_label(named, label_of) or str(settings.get("gpu", RunConfig().gpu))] = RunConfig(
            **shared, **settings
        )
    return configs


def _label(named: dict[str, Any], label_of: Callable[[dict[str, Any]], str]) -> str:
    """The GPU goes by its bare name, first; then the rest as in a comparison."""
    gpu = [str(named["gpu"])] if "gpu" in named else []
    rest = label_of({k: v for k, v in named.items() if k != "gpu"})
    return ",".join([*gpu, *([rest] if rest else [])])


@contextmanager
def _progress(*, shown: bool) -> Iterator[Callable[[PlanProgress], None] | None]:
    """A live bar on a terminal, elsewhere a line for every few candidates."""
    if not shown:
        yield None
    elif sys.stderr.isatty():
        yield from _bar()
    else:
        yield _lines()


def _bar() -> Iterator[Callable[[PlanProgress], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("plan", total=None, note="")
        yield lambda p: bar.update(task, description=p.stage, completed=p.done, total=p.total, note=p.note)


def _lines() -> Callable[[PlanProgress], None]:
    shown: set[tuple[str, int]] = set()

    def show(p: PlanProgress) -> None:
        tenth = 10 * p.done // max(1, p.total)
        if (p.stage, tenth) not in shown:
            shown.add((p.stage, tenth))
            print(f"plan: {p.stage} {p.done}/{p.total} {p.note}", file=sys.stderr)

    return show


def _output(args: Namespace, result: PlanResult, command: list[str]) -> None:
    from stepline.sim.study.plan_report import as_json, plan_view, write_plan

    if args.json:
        sys.stdout.write(as_json(result))
    elif not args.quiet:
        from .output import _console

        _console().print(plan_view(result))
    if not args.no_save:
        out = args.out or PLANS / _name(args, result)
        write_plan(result, out, " ".join(command))
        if not (args.quiet or args.json):
            from .output import print_place

            print_place(out)


def _name(args: Namespace, result: PlanResult) -> str:
    """`<trace>-<digest of the candidates and the load>`."""
    import hashlib

    from stepline.sim.study.plan_report import as_json

    from .output import file_name

    stem = file_name(Path(args.trace).name.split(".", 1)[0])
    return f"{stem}-{hashlib.sha256(as_json(result).encode()).hexdigest()[:8]}"
