"""Many settings on the same arrivals, several times over: means, intervals, paired differences, the Pareto set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.traces.errors import ConfigError
from stepline.traces.trace import Trace
from stepline.traces.transform import resample_sessions

from ..report.paired import METHOD as PAIRED_METHOD
from ..report.paired import compare_results
from ..report.summary import summary
from .compare import check_load
from .config import RunConfig
from .run import loaded, simulate_resolved
from .setup import resolve

if TYPE_CHECKING:
    import pandas as pd

    from ..engine.result import RunResult

CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure by which runs are compared: where it is in the summary, its unit, and whether more is better."""

    name: str
    path: tuple[str, ...]
    unit: str
    more_is_better: bool = False


FIGURES = (
    Figure("output_tokens_per_s", ("throughput", "output_tokens_per_s"), "1/s", more_is_better=True),
    Figure("requests_per_s", ("throughput", "requests_per_s"), "1/s", more_is_better=True),
    Figure("goodput_requests_per_s", ("throughput", "goodput_requests_per_s"), "1/s", more_is_better=True),
    *[
        Figure(f"{metric}_{stat}", (f"{metric}_s", stat), "s")
        for metric in ("ttft", "tpot", "itl", "e2e")
        for stat in ("mean", "p50", "p99")
    ],
    Figure("prefix_hit_token_frac", ("kv", "prefix_hit_token_frac"), "1", more_is_better=True),
    Figure("evicted_blocks", ("kv", "evicted_blocks"), "blocks"),
    Figure("preemptions", ("requests", "preemptions"), "1"),
    Figure("rejected", ("requests", "rejected"), "1"),
    Figure("timed_out", ("requests", "timed_out"), "1"),
)
PARETO = ("output_tokens_per_s", "ttft_p99", "tpot_p99")
"""Figures whose best compromises make the Pareto set."""


@dataclass(frozen=True, slots=True)
class GridRow:
    """One figure of one run. `value`: mean over replications, with its interval; `difference` to the baseline, paired.

    Intervals are None where nothing can be said (the baseline's own difference, figures that do not repeat).
    """

    run: str
    figure: str
    unit: str
    replications: int
    value: float | None
    value_low: float | None
    value_high: float | None
    baseline: float | None
    difference: float | None
    low: float | None
    high: float | None
    pareto: bool

    @property
    def is_clear(self) -> bool:
        """True when the interval of the difference excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Runs by label (the first is the baseline), every figure of every run, and the labels of the Pareto set.

    `warnings`: by run, what a reader of its figures must know.
    """

    configs: Mapping[str, RunConfig]
    rows: tuple[GridRow, ...]
    pareto: tuple[str, ...]
    method: str
    warnings: Mapping[str, tuple[str, ...]]

    @property
    def baseline(self) -> str:
        """The run that the others are compared with."""
        return next(iter(self.configs))

    def find(self, run: str, figure: str) -> GridRow:
        """One figure of one run."""
        return next(r for r in self.rows if (r.run, r.figure) == (run, figure))

    def frame(self) -> pd.DataFrame:
        """One row a run and figure: its settings that differ between runs, then the fields of `GridRow`."""
        import pandas as pd

        differing = _differing(self.configs)
        names = [f.name for f in fields(GridRow)]
        rows = [
            [*(getattr(self.configs[r.run], s) for s in differing), *(getattr(r, n) for n in names)]
            for r in self.rows
        ]
        return pd.DataFrame(rows, columns=[*differing, *names])


def run_grid(
    trace: Trace | str | Path,
    configs: Mapping[str, RunConfig],
    replications: int = 1,
    *,
    watch: Callable[[str], Any] | None = None,
) -> Grid:
    """Run every configuration on the same requests; the first is the baseline of the differences.

    With one replication, the trace is replayed as it is and intervals are those of the paired block bootstrap
    (`report.paired`). With more, each replays sessions drawn from the trace with replacement, the same for all
    configurations (common random numbers), and intervals are Student's over replications. `watch(what)`: a context
    manager around each run, which yields the run's `on_progress`.

    Raises:
        ConfigError: fewer than two runs, runs with different load settings, replications < 1.
    """
    if replications < 1:
        raise ConfigError(f"--replications: got {replications}, expected an integer >= 1")
    check_load(configs)
    setups = {label: resolve(config) for label, config in configs.items()}
    first = next(iter(configs.values()))
    whole = loaded(trace, first)
    samples: list[dict[str, dict[str, float | None]]] = []
    results: dict[str, RunResult] = {}
    for number in range(replications):
        requests = whole if replications == 1 else resample_sessions(whole, number, first.seed)
        requests = replace(requests, source=whole.source, sha256=whole.sha256)
        sample = {}
        for label, setup in setups.items():
            what = label if replications == 1 else f"{label} #{number + 1}"
            results[label] = _run(requests, setup, label, what, watch)
            sample[label] = _figures(summary(results[label]))
        samples.append(sample)
    intervals = _bootstrap(results, first.seed) if replications == 1 else {}
    return _grid(configs, samples, intervals, {label: r.warnings for label, r in results.items()})


def _run(requests: Trace, setup: Any, label: str, what: str, watch: Callable[[str], Any] | None) -> RunResult:
    if watch is None:
        return simulate_resolved(requests, setup, label=label)
    with watch(what) as on_progress:
        return simulate_resolved(requests, setup, label=label, on_progress=on_progress)


def _figures(figures: Mapping[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for figure in FIGURES:
        value: Any = figures
        for key in figure.path:
            value = value[key]
        found[figure.name] = None if value is None else float(value)
    return found


def _bootstrap(results: Mapping[str, RunResult], seed: int) -> dict[tuple[str, str], Any]:
    """Interval of each difference of two runs of the very same requests, by run and figure."""
    rows = compare_results(results, seed).differences
    return {(d.run, f"{d.metric}_{d.stat}"): (d.low, d.high) for d in rows if d.unit == "s"}


def _grid(
    configs: Mapping[str, RunConfig],
    samples: Sequence[Mapping[str, Mapping[str, float | None]]],
    intervals: Mapping[tuple[str, str], tuple[float | None, float | None]],
    warnings: Mapping[str, tuple[str, ...]],
) -> Grid:
    labels = list(configs)
    values = {
        (label, f.name): [sample[label][f.name] for sample in samples] for label in labels for f in FIGURES
    }
    means = {key: _mean(found) for key, found in values.items()}
    pareto = pareto_set({label: [_cost(means, label, name) for name in PARETO] for label in labels})
    rows = []
    for label in labels:
        for f in FIGURES:
            own, base = values[label, f.name], values[labels[0], f.name]
            if all(v is None for v in own):
                continue
            low_high = _interval(own)
            difference, between = _difference(own, base)
            if label == labels[0]:
                between = (None, None)
            elif len(samples) == 1:
                between = intervals.get((label, f.name), (None, None))
            row = GridRow(
                label, f.name, f.unit, len(samples), means[label, f.name], *low_high,
                means[labels[0], f.name], difference, *between, label in pareto,
            )  # fmt: skip
            rows.append(row)
    return Grid(configs, tuple(rows), pareto, _method(len(samples)), warnings)


def _method(replications: int) -> str:
    if replications == 1:
        return PAIRED_METHOD
    return (
        f"{replications} replications of sessions drawn with replacement, the same for all runs; "
        f"{CONFIDENCE:.0%} Student interval of paired differences"
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def _interval(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Student interval of a mean; (None, None) for fewer than two values."""
    known = np.array([v for v in values if v is not None])
    if len(known) < 2:
        return None, None
    from scipy import stats

    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return float(known.mean()) - half, float(known.mean()) + half


def _difference(
    own: Sequence[float | None], base: Sequence[float | None]
) -> tuple[float | None, tuple[float | None, float | None]]:
    pairs = [a - b for a, b in zip(own, base, strict=True) if a is not None and b is not None]
    return _mean(pairs), _interval(pairs)


def _cost(means: Mapping[tuple[str, str], float | None], label: str, name: str) -> float:
    """The figure as something to minimise; unknown is the worst."""
    value = means[label, name]
    if value is None:
        return np.inf
    more = next(f.more_is_better for f in FIGURES if f.name == name)
    return -value if more else value


def are_alike(x: float, y: float) -> bool:
    """Whether two figures differ by no more than the order of additions makes."""
    return isclose(x, y, rel_tol=1e-9)


def pareto_set(costs: Mapping[str, Sequence[float]]) -> tuple[str, ...]:
    """Labels that no other beats in one figure without losing in another (all figures to be minimised).

    >>> pareto_set({"a": [1, 5], "b": [2, 4], "c": [3, 6], "a again": [1, 4.9999999999999]})
    ('a', 'b', 'a again')
    """

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        pairs = [(x, y) for x, y in zip(a, b, strict=True) if not are_alike(x, y)]
        return bool(pairs) and all(x < y for x, y in pairs)

    return tuple(
        label for label, own in costs.items() if not any(beats(other, own) for other in costs.values())
    )


def _differing(configs: Mapping[str, RunConfig]) -> list[str]:
    """Settings that are not the same in all runs."""
    names = [f.name for f in fields(RunConfig)]
    return [n for n in names if len({str(getattr(c, n)) for c in configs.values()}) > 1]
