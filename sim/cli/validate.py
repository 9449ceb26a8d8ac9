"""`simulate validate`: replay measured runs and print the errors, next to those of other simulators."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .parser import Parser, integer, listing

if TYPE_CHECKING:
    import pandas as pd
    from stepline.sim.study.validate import Validation
    from stepline.sim.study.validation_runs import Outcome

_EPILOG = """\
The folder holds experiments.csv and metrics.csv, the logged requests of exact replays and, if there are any, the
predictions of other simulators in peers.csv (format: docs/concepts/accuracy.md). Experiments that cannot be replayed
(unknown model, GPU or engine) are listed with the reason.

examples:
  simulate validate --measured runs/
  simulate validate --measured runs/ --set A,B --out results/validation
  simulate validate --measured runs/ --set silicon --only 70b --json"""

SHORT = {
    "ttft_mean": "TTFT", "ttft_p50": "TTFT p50", "ttft_p90": "TTFT p90", "ttft_p99": "(TTFT p99)",
    "tpot_mean": "TPOT", "e2e_mean": "E2E", "e2e_p90": "E2E p90", "e2e_p99": "E2E p99",
    "throughput_requests": "req/s", "throughput_output_tokens": "tok/s", "failed_fraction": "failed, points",
    "last_survivor_s": "last survivor",
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code: 0, also where experiments were skipped; 1 where none could be replayed."""
    from stepline.sim.study.validate import validate

    args = _parser().parse_args(list(argv))
    if args.measured is None:
        raise ConfigError("--measured: got none, expected the folder of measured runs")
    result = validate(
        args.measured,
        listing(args.set) or ["all"],
        only=args.only,
        seeds=args.seeds,
        jobs=args.jobs,
        on_done=None if args.quiet else _progress,
    )
    if not result.outcomes:
        raise ConfigError(f"--only: got {args.only!r}, no experiment of these sets has it in its name")
    if args.json:
        from stepline.sim.study.validation_report import as_json

        sys.stdout.write(as_json(result))
    else:
        print_report(result, experiments=not args.groups_only)
    if args.out is not None:
        from stepline.sim.study.validation_report import write_report

        command = "simulate validate " + " ".join(argv)
        write_report(result, Path(args.out), command, pictures=args.pictures)
    return 1 if result.values.empty else 0


def _parser() -> Parser:
    import argparse

    parser = Parser(prog="simulate validate", description=__doc__, epilog=_EPILOG)
    parser.add_argument("--measured", metavar="DIR", help="folder of measured runs")
    parser.add_argument("--set", action="append", metavar="NAME",
                        help="A (every request logged), B (arrival law), ispass, silicon (closed loop), all (all)")  # fmt: skip
    parser.add_argument("--only", default="", metavar="TEXT", help="experiments with this in their name")
    parser.add_argument("--seeds", type=integer, default=3, metavar="N",
                        help="replications of a statistical replay (3)")  # fmt: skip
    parser.add_argument("--jobs", type=integer, metavar="N", help="processes (one a core)")
    parser.add_argument("--out", metavar="DIR", help="write tables and pictures here")
    parser.add_argument("--pictures", action=argparse.BooleanOptionalAction, default=True,
                        help="draw pictures too (with --out)")  # fmt: skip
    parser.add_argument("--groups-only", action="store_true", help="no table by experiment")
    parser.add_argument("--json", action="store_true", help="everything as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _progress(outcome: Outcome, done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r\x1b[K{done}/{total} {outcome.experiment.key[:70]}", end=end, file=sys.stderr, flush=True)


def print_report(result: Validation, *, experiments: bool) -> None:
    """Rules, errors by experiment and by group, peers, and what was skipped."""
    from stepline.sim.study.validation_scores import RULES

    print(RULES)
    if not result.values.empty:
        if experiments:
            _section("Mean absolute error by experiment (%)", _by_experiment(result.experiments()))
        for key in ("group", "arch", "tp", "engine", "gpu", "model"):
            _section(f"By {key} (%)", result.groups(key))
            if key == "group":
                _section("By group, median of the experiments (%)", result.groups(key, "median"))
        _section("Other simulators, and ours on the same experiments (%)", result.against_peers())
    warnings = sorted({w for o in result.outcomes for w in o.warnings})
    for title, lines in (
        ("Notes", warnings),
        ("Not replayed", [f"{key}: {why}" for key, why in result.skipped.items()]),
    ):
        if lines:
            print(f"\n{title}")
            for line in lines:
                print(f"  {line}")


def _by_experiment(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_index("exp_key").drop(columns=["set", "model", "gpu", "tp", "engine", "arch", "group"])


def _section(title: str, table: pd.DataFrame) -> None:
    if table.empty:
        return
    print(f"\n{title}")
    columns = [c for c in ("n", *SHORT) if c in table]
    shown = table[columns].rename(columns=SHORT)
    formats: dict[str, Any] = {c: _percent for c in shown.columns if c != "n"}
    print(shown.to_string(formatters=formats, na_rep="–"))


def _percent(value: float) -> str:
    return "–" if value != value else f"{100 * value:.1f}"
