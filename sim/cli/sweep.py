"""`simulate sweep`: many runs from a table of points."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.wording import counted

from .parser import Parser, integer

if TYPE_CHECKING:
    from stepline.sim.study.sweep import SweepProgress, SweepResult

SWEEPS = Path("results/sweeps")

_DESCRIPTION = """\
Run a table of points and write one table of results. A spec (TOML):

  name = "chunks"
  trace = "chat.jsonl"              # or a list of files; relative to the spec
  [base]                            # settings of every point, named as the flags of simulate
  model = "llama-3.1-8b"
  [grid]                            # every combination is a point
  policy = ["chunked", "sarathi"]
  max-num-batched-tokens = [512, 2048, 8192]
  [[point]]                         # further points, one by one
  policy = "static"

Results are kept one file a point, named by the digest of all they depend on: a sweep that was interrupted, or whose
spec has grown, runs only what is missing. A point that fails is reported and does not stop the others.
"""


def main(argv: Sequence[str]) -> int:
    """Run a sweep. Returns 0, or 1 if points failed."""
    parser = _parser()
    if "--help" in argv or "-h" in argv or not argv:
        print(parser.format_help())
        return 0
    args = parser.parse_args(argv)
    result = _sweep(args)
    _print(args, result)
    return 1 if result.failures else 0


def _parser() -> Parser:
    parser = Parser(prog="simulate sweep", add_help=False, description=_DESCRIPTION)
    parser.add_argument("spec", metavar="SPEC.toml", help="the study")
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"where results are kept ({SWEEPS}/<name>)")
    add_executor_options(parser)
    parser.add_argument("--again", action="store_true", help="run points that have a result too")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("--help", action="store_true", help="this help")
    return parser


def add_executor_options(parser: Parser) -> None:
    """Who does the work."""
    group = parser.add_argument_group("workers")
    group.add_argument("--jobs", type=integer, metavar="N", help="worker processes (as many as CPUs)")
    group.add_argument("--executor", default="local", metavar="local|dask",
                       help="processes here, or Dask distributed (pip install 'stepline[dask]')")  # fmt: skip
    group.add_argument(
        "--scheduler", metavar="tcp://HOST:PORT", help="running Dask scheduler (else a local one)"
    )


def _sweep(args: Namespace) -> SweepResult:
    from stepline.sim.study.executors import open_executor
    from stepline.sim.study.sweep import sweep
    from stepline.sim.study.sweep_spec import read_sweep

    from .output import file_name

    spec = read_sweep(args.spec)
    out = args.out or SWEEPS / file_name(spec.name)
    with (
        open_executor(args.executor, jobs=args.jobs, scheduler=args.scheduler) as executor,
        _progress(spec.name, len(spec.points), shown=not args.quiet) as on_progress,
    ):
        return sweep(spec, out, executor=executor, again=args.again, on_progress=on_progress)


@contextmanager
def _progress(name: str, total: int, *, shown: bool) -> Iterator[Callable[[SweepProgress], None] | None]:
    """A live bar on a terminal, elsewhere a line at every tenth of the points; always a line when a worker dies."""
    if not shown:
        yield None
    elif sys.stderr.isatty():
        yield from _bar(name, total)
    else:
        yield _Lines(name)


def _bar(name: str, total: int) -> Iterator[Callable[[SweepProgress], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(name, total=total, note="")
        yield lambda p: bar.update(task, completed=p.done + p.failed, note=_note(p))


class _Lines:
    """Progress as lines on stderr."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tenth = 0
        self._losses = 0

    def __call__(self, p: SweepProgress) -> None:
        tenth = 10 * (p.done + p.failed) // p.total
        if tenth > self._tenth or p.losses > self._losses:
            self._tenth, self._losses = tenth, p.losses
            print(f"{self._name}: {p.done + p.failed}/{counted(p.total, 'point')}{_note(p)}", file=sys.stderr)


def _note(p: SweepProgress) -> str:
    parts = [
        (p.failed, "failed"),
        (p.losses, "worker(s) lost, their points run again"),
        (p.kept, "kept from before"),
    ]
    return "".join([f", {n} {text}" for n, text in parts if n])


def _print(args: Namespace, result: SweepResult) -> None:
    if args.json:
        sys.stdout.write(result.table.to_json(orient="records", indent=2) + "\n")
    elif not args.quiet:
        p = result.progress
        print(
            f"{counted(p.done, 'point', of=p.total)} in {p.wall_s:.1f} s{_note(p)}\nresults   {result.directory}/sweep.csv"
        )
    for settings, error in result.failures:
        print(f"simulate sweep: failed: {_words(settings)}: {error}", file=sys.stderr)


def _words(settings: Any) -> str:
    """What a point says of its own."""
    return ", ".join(f"{k}={v}" for k, v in settings.items() if v is not None) or "the only point"
