"""What pictures are made of: the tables of a run, from its result or from its directory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson
import pandas as pd
from stepline.traces.errors import ConfigError

from .result_tables import chunk_table, histogram_table, preemption_table, request_table
from .run_dir import MANIFEST, is_run_dir, manifest
from .summary import summary

if TYPE_CHECKING:
    from stepline.sim.engine.result import RunResult


@dataclass(frozen=True, slots=True, eq=False)
class RunTables:
    """One run: `manifest` and `summary` (the content of their files), and tables as written to its directory.

    `requests`, `series`, `preemptions`, `chunks` (None: not recorded), `histograms`: see `run_dir.write_run`.
    """

    label: str
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    requests: pd.DataFrame
    series: pd.DataFrame
    histograms: pd.DataFrame
    preemptions: pd.DataFrame
    chunks: pd.DataFrame | None = None

    @property
    def config(self) -> Mapping[str, Any]:
        """The resolved settings."""
        config: Mapping[str, Any] = self.manifest["config"]
        return config

    @property
    def span_s(self) -> tuple[float, float]:
        """First arrival and last event."""
        if not len(self.requests):
            return 0.0, 0.0
        return float(self.requests["arrival_s"].min()), float(np.nanmax(self.requests["finish_s"]))


def tables_of(
    result: RunResult, *, command: str | None = None, figures: Mapping[str, Any] | None = None
) -> RunTables:
    """The tables of a result; `figures`: its summary if it is at hand already."""
    return RunTables(
        label=str(result.config.get("label", "run")),
        manifest=manifest(result, command),
        summary=figures or summary(result),
        requests=request_table(result),
        series=result.totals.series,
        histograms=histogram_table(result),
        preemptions=preemption_table(result),
        chunks=chunk_table(result),
    )


def read_run(directory: Path, label: str | None = None) -> RunTables:
    """The tables of a run directory.

    Raises:
        ConfigError: not the directory of one run, or one without the tables that reports need.
    """
    found = read_manifest(directory)
    if found.get("kind") != "run":
        raise ConfigError(f"{directory}: expected the directory of one run, got a {found.get('kind')}")
    return RunTables(
        label=label or str(found["config"].get("label", "run")),
        manifest=found,
        summary=_json(directory / "summary.json"),
        requests=_parquet(directory / "requests.parquet"),
        series=_parquet(directory / "series.parquet"),
        histograms=_parquet(directory / "histograms.parquet"),
        preemptions=_parquet(directory / "preemptions.parquet"),
        chunks=_parquet(directory / "chunks.parquet") if (directory / "chunks.parquet").exists() else None,
    )


def step_parts(directory: Path) -> Iterator[pd.DataFrame]:
    """The recorded steps of a run directory, some at a time. Raises `ConfigError` where there are none."""
    import pyarrow.parquet as pq

    path = directory / "steps.parquet"
    if not path.exists():
        raise ConfigError(f"{directory}: holds no steps; simulate it with --record-steps")
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(_STEPS_AT_ONCE):
            yield batch.to_pandas()


_STEPS_AT_ONCE = 50_000


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a run directory. Raises `ConfigError` where there is none."""
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such directory, expected one written by simulate --out")
    if not is_run_dir(directory):
        raise ConfigError(f"{directory}: no {MANIFEST} in it, expected a directory written by simulate --out")
    return _json(directory / MANIFEST)


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); simulate the run again") from None
    return content


def _parquet(path: Path) -> pd.DataFrame:
    if not path.exists():
        raise ConfigError(
            f"{path}: missing, reports need it; simulate the run again with this version of stepline"
        )
    return pd.read_parquet(path)
