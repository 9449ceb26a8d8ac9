"""A comparison as its pages need it: from its result or from its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from stepline.traces.errors import ConfigError

from .paired import Difference
from .ranking import criterion, order_key, rank, rule_text
from .run_tables import RunTables, read_manifest, read_run, tables_of
from .units import seconds_text

if TYPE_CHECKING:
    from .paired import Comparison


@dataclass(frozen=True, slots=True, eq=False)
class ComparisonTables:
    """Runs in the order given (the first is the baseline), their ranking and their paired differences.

    `ranking` {criterion, places: [{run, place, why, is_tie}]}; `differences`: the content of `comparison.csv`.
    """

    runs: tuple[RunTables, ...]
    ranking: Mapping[str, Any]
    differences: pd.DataFrame
    method: str

    @property
    def labels(self) -> list[str]:
        """Labels of the runs."""
        return [run.label for run in self.runs]

    @property
    def baseline(self) -> str:
        """Label of the run that the others are compared with."""
        return self.runs[0].label

    @property
    def ranked(self) -> list[RunTables]:
        """The runs from best to worst."""
        by_label = {run.label: run for run in self.runs}
        return [by_label[place["run"]] for place in self.ranking["places"]]


def records(differences: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of `differences`; absent values are None."""
    plain = differences.astype(object).where(differences.notna(), None)
    return [dict(zip(plain.columns, row, strict=True)) for row in plain.to_numpy().tolist()]


def metric_name(row: Mapping[str, Any]) -> str:
    """A difference's metric and statistic for people, e.g. `TTFT p99`."""
    metric = row["metric"]
    return f"{metric if metric == 'queue' else metric.upper()} {row['stat']}"


def ranking_of(comparison: Comparison) -> dict[str, Any]:
    """The ranking, JSON-able, as the manifest of a comparison holds it."""
    return {"criterion": criterion(comparison), "places": [asdict(place) for place in rank(comparison)]}


def comparison_tables(
    comparison: Comparison, *, ranking: Mapping[str, Any] | None = None, command: str | None = None
) -> ComparisonTables:
    """The tables of a comparison at hand."""
    runs = tuple(
        tables_of(result, command=command, figures=comparison.summaries[label])
        for label, result in comparison.results.items()
    )
    return ComparisonTables(runs, ranking or ranking_of(comparison), comparison.frame(), comparison.method)


def beside(runs: Sequence[RunTables]) -> ComparisonTables:
    """Runs of one trace that were not compared when they were made: no differences, ranked by the usual rule.

    Labels are made different by a number where two runs have the same.

    Raises:
        ConfigError: runs of different traces.
    """
    traces = {str(run.config["trace"]["sha256"]) for run in runs}
    if len(traces) > 1:
        names = ", ".join(str(run.config["trace"]["source"]) for run in runs)
        raise ConfigError(f"runs of different traces cannot share a page: {names}")
    named: list[RunTables] = []
    for run in runs:
        taken = [other.label for other in named]
        label, n = run.label, 2
        while label in taken:
            label, n = f"{run.label} ({n})", n + 1
        named.append(replace(run, label=label))
    order = sorted(named, key=lambda run: order_key(run.summary))
    places = [{"run": r.label, "place": i + 1, "why": _why(r), "is_tie": False} for i, r in enumerate(order)]
    ranking = {"criterion": rule_text(any(run.summary.get("slo") for run in runs)), "places": places}
    columns = list(Difference.__dataclass_fields__)
    method = "runs set side by side without pairing: simulate them in one call for differences with intervals"
    return ComparisonTables(tuple(named), ranking, pd.DataFrame(columns=columns), method)


def _why(run: RunTables) -> str:
    return f"mean E2E {seconds_text(run.summary['e2e_s']['mean'])}"


def read_comparison(directory: Path) -> ComparisonTables:
    """The tables of a comparison's directory.

    Raises:
        ConfigError: not the directory of a comparison, or one of an older version.
    """
    found = read_manifest(directory)
    if found.get("kind") != "comparison":
        raise ConfigError(f"{directory}: expected the directory of a comparison, got a {found.get('kind')}")
    table = directory / "comparison.csv"
    if "ranking" not in found or not table.exists():
        raise ConfigError(f"{directory}: no ranking or comparison.csv in it; simulate the comparison again")
    runs = tuple(read_run(directory / folder, label) for label, folder in found["runs"].items())
    return ComparisonTables(runs, found["ranking"], pd.read_csv(table), found["method"])
