"""Folders of measured serving runs, in a documented format that anybody can add to.

A folder holds plain or gzipped CSV tables:

`experiments.csv[.gz]`: one row an experiment and stage (a stage is a stretch of load at one rate; an experiment without
stages has one row, stage 0 or -1; a row of stage -1 beside others is the whole run and is not replayed by itself).

| column | meaning |
|--|--|
| `exp_key`, `stage` | names the experiment; stages count from 0 |
| `replay_class` | `A exact`, `B statistical`, `A- exact trace` (server flags unknown) or `B closed-loop`: see `SETS` |
| `hardware`, `model`, `precision` | GPU and model by catalogue name, alias or Hugging Face id |
| `tp`, `dp`, `n_replicas` | GPUs of an engine, engines behind one server, servers |
| `engine`, `engine_version` | `vllm`, `sglang`, `trtllm`; the first version number in the text counts |
| `max_model_len`, `max_num_batched_tokens`, `max_num_seqs`, `block_size`, `gpu_memory_utilization` | server flags |
| `prefix_caching` | `on...`, `off...`; anything else: the engine's default |
| `cpu_kv_offload` | `true`: the server copied KV to host memory |
| `kv_blocks_gpu`, `kv_blocks_source` | KV blocks; only a source that starts with `measured` is taken, else the ledger |
| `workload` | free text; with `1 prefill + 1 decode` in it the run was disaggregated |
| `rate_rps`, `duration_s`, `n_requests` | arrivals of the stage (statistical replay) |
| `concurrency` | requests in flight (closed loop); `n_requests` in all, where it is known |
| `isl_spec`, `isl_mean_measured`, `osl_spec` | prompt tokens as specified and as counted, output tokens |
| `prompt_cycle`, `shared_prefix_len`, `n_prompts_per_group` | request i sends prompt i mod cycle; prompts of a group share a prefix |
| `request_timeout_s` | after which clients give up |
| `source` | where the row is from; published closed-loop sweeps are known by it, see `closed_loops` |
| `trace_file` | requests of an exact replay, relative to the folder |

Only `exp_key`, `hardware`, `model` and `engine` must be there; an absent column or cell means "not known", and the
engine's default holds. `trace_file` is a CSV with the columns `stage, arrival_s, prompt_id, input_tokens,
output_tokens, error, ttft_s, e2e_s`, or anything `stepline.traces` reads (native JSONL with `observed` values, the
result of `vllm bench serve --save-detailed`, a LLMServingSim JSONL ...).

`metrics.csv[.gz]` (long): `exp_key, stage, metric, stat, value, unit`; metrics `ttft`, `tpot`, `e2e`,
`throughput_requests`, `throughput_output_tokens`, `failed_fraction`; stats `mean`, `p50`, `p90`, `p99` or `unstated`.
Where the trace file carries measured values they are used instead. `peers.csv[.gz]` (optional): `peer, exp_key, stage,
metric, predicted` with metrics as `ttft_mean`, `e2e_p99`, `itl_mean` (held against TPOT), times in ms.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stepline.traces.errors import ConfigError, nearest

if TYPE_CHECKING:
    import pandas as pd

Replay = Literal["exact", "law", "trace", "closed"]

SETS: dict[str, str] = {"A": "exact", "B": "law", "ispass": "trace", "silicon": "closed"}
"""Sets of `--set` and how they are replayed: every request as logged; by the arrival law; a published trace whose
server flags are not known; at a fixed number of requests in flight."""

_CLASSES: tuple[tuple[str, Replay], ...] = (
    ("A exact", "exact"),
    ("A-", "trace"),
    ("B closed-loop", "closed"),
    ("B statistical", "law"),
    ("exact", "exact"),
    ("trace", "trace"),
    ("closed", "closed"),
    ("law", "law"),
)

GPU_NAMES = {
    "h100-80gb-hbm3": "h100-sxm",
    "h100-80gb": "h100-sxm",
    "h100-sxm": "h100-sxm",
    "h200-sxm": "h200",
    "a100-80gb": "a100-80",
    "a100-sxm4-80gb": "a100-80",
    "b200-sxm": "b200",
}
"""How drivers and benchmarks call GPUs: catalogue name."""

REQUIRED = ("exp_key", "hardware", "model", "engine")
TIMES = ("ttft", "tpot", "e2e")
STATS = ("mean", "p50", "p90", "p99", "unstated")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of load; None: not known. `measured`: {`ttft_mean`: seconds, `throughput_requests`: 1/s, ...}."""

    index: int
    rate_per_s: float | None = None
    duration_s: float | None = None
    n_requests: int | None = None
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Experiment:
    """One measured run: what was served how, the load, and what was measured.

    `flags`: server flags by `RunConfig` name, the known ones only. `kv_blocks`: as measured, or None. `peers`:
    {peer: {stage: {metric: value}}} in seconds. `trace_file`: absolute path, or None. `raw`: the first row as it stands.
    """

    key: str
    replay: Replay
    model: str
    gpu: str
    arch: str
    tp: int
    replicas: int
    precision: str
    engine: str
    engine_version: str
    flags: Mapping[str, Any]
    kv_blocks: int | None
    offloads_kv: bool
    workload: str
    stages: tuple[Stage, ...]
    whole: Mapping[str, float]
    concurrency: int | None = None
    input_spec_tokens: float | None = None
    input_mean_tokens: float | None = None
    output_tokens: float | None = None
    prompt_cycle: int = 0
    shared_prefix_tokens: int = 0
    prompts_per_group: int = 0
    timeout_s: float | None = None
    trace_file: Path | None = None
    source: str = ""
    peers: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)

    @property
    def set(self) -> str:
        """Its set, as `--set` calls it."""
        return next(name for name, replay in SETS.items() if replay == self.replay)

    @property
    def pools(self) -> tuple[int, int] | None:
        """Instances that computed prompts, and that decoded, where these were different ones."""
        found = re.search(r"(\d+) prefill \+ (\d+) decode", self.workload)
        return None if found is None else (int(found[1]), int(found[2]))


def load_measured(folder: str | Path) -> tuple[Experiment, ...]:
    """Every experiment of a folder (format: the module's docstring), in the order of `experiments.csv`.

    Raises:
        ConfigError: no such folder, no experiments in it, missing columns or an unknown replay class.
    """
    root = Path(folder)
    rows = _table(root, "experiments")
    if rows is None:
        raise ConfigError(f"{root}: got no experiments.csv or experiments.csv.gz, expected one of them")
    missing = [name for name in REQUIRED if name not in rows]
    if missing:
        raise ConfigError(f"{root}/experiments.csv: missing column {missing[0]!r}")
    metrics = _metrics(
        _long(root, "metrics", ("exp_key", "stage", "metric", "stat", "value", "unit"), "value")
    )
    peers = _peers(_long(root, "peers", ("peer", "exp_key", "stage", "metric", "predicted"), "predicted"))
    stages: dict[str, list[dict[Any, Any]]] = {}
    for cells in rows[rows["exp_key"].notna()].to_dict("records"):
        stages.setdefault(str(cells["exp_key"]), []).append(cells)
    return tuple(
        _experiment(root, key, group, metrics.get(key, {}), peers.get(key, {}))
        for key, group in stages.items()
    )


def chosen(experiments: Iterable[Experiment], names: Iterable[str]) -> tuple[Experiment, ...]:
    """Those of the sets called `names` (`all`: every one). Raises `ConfigError` for an unknown name."""
    wanted = set()
    for name in names:
        if name != "all" and name not in SETS:
            raise ConfigError(f"--set: unknown set {name!r}{nearest(name, [*SETS, 'all'])}")
        wanted |= set(SETS) if name == "all" else {name}
    return tuple(e for e in experiments if e.set in wanted)


# --- rows


def _table(root: Path, name: str) -> pd.DataFrame | None:
    import pandas as pd

    for path in (root / f"{name}.csv.gz", root / f"{name}.csv"):
        if path.is_file():
            try:
                return pd.read_csv(path, dtype={"exp_key": str, "engine_version": str})
            except (ValueError, OSError) as error:
                raise ConfigError(f"{path}: not a CSV table ({error})") from None
    return None


def _long(root: Path, name: str, columns: Sequence[str], value: str) -> pd.DataFrame | None:
    """A table of one value a row, without the rows that have none; None where there is no such file.

    Raises:
        ConfigError: a missing column, or a `value` or stage that is not a number.
    """
    import pandas as pd

    table = _table(root, name)
    if table is None:
        return None
    missing = [column for column in columns if column not in table]
    if missing:
        raise ConfigError(f"{root}/{name}.csv: missing column {missing[0]!r}")
    table = table[table[value].notna()]
    for column in (value, "stage"):
        numbers = pd.to_numeric(table[column], errors="coerce")
        if numbers.isna().any():
            row = int(numbers.isna().to_numpy().argmax())
            where = f"{root}/{name}.csv:{int(table.index[row]) + 2}"
            raise ConfigError(f"{where}: {column}: got {table[column].iloc[row]}, expected a number")
        table = table.assign(**{column: numbers})
    return table


def _experiment(
    root: Path,
    key: str,
    rows: Sequence[dict[Any, Any]],
    metrics: Mapping[int, Mapping[str, float]],
    peers: Mapping[str, Mapping[int, Mapping[str, float]]],
) -> Experiment:
    row = _Row(f"{root}/experiments.csv: {key}", rows[0])
    stages = tuple(
        _stage(one, metrics)
        for one in (_Row(row.where, cells) for cells in rows)
        if (one.integer("stage") or 0) >= 0
    )
    if not stages:
        stages = (_stage(row, metrics),)
    blocks = row.integer("kv_blocks_gpu")
    trace = row.text("trace_file")
    return Experiment(
        key=key,
        replay=_replay(row),
        model=row.text("model"),
        gpu=gpu_name(row.text("hardware")),
        arch=row.text("arch") or "dense",
        tp=row.integer("tp") or row.integer("n_gpu") or 1,
        replicas=(row.integer("n_replicas") or 1) * (row.integer("dp") or 1),
        precision=row.text("precision"),
        engine=row.text("engine"),
        engine_version=_version(row.text("engine_version")),
        flags=_flags(row),
        kv_blocks=blocks if row.text("kv_blocks_source").startswith("measured") else None,
        offloads_kv=row.text("cpu_kv_offload").lower() in ("true", "on", "1"),
        workload=row.text("workload"),
        stages=stages,
        whole=metrics.get(-1, {}),
        concurrency=row.integer("concurrency"),
        input_spec_tokens=row.number("isl_spec"),
        input_mean_tokens=row.number("isl_mean_measured"),
        output_tokens=row.number("osl_spec"),
        prompt_cycle=row.integer("prompt_cycle") or 0,
        shared_prefix_tokens=row.integer("shared_prefix_len") or 0,
        prompts_per_group=row.integer("n_prompts_per_group") or 0,
        timeout_s=row.number("request_timeout_s"),
        trace_file=root / trace if trace else None,
        source=row.text("source"),
        peers=peers,
    )


def _stage(row: _Row, metrics: Mapping[int, Mapping[str, float]]) -> Stage:
    index = row.integer("stage")
    index = 0 if index is None else index
    return Stage(
        index=index,
        rate_per_s=row.number("rate_rps"),
        duration_s=row.number("duration_s"),
        n_requests=row.integer("n_requests"),
        measured=metrics.get(index, {}),
    )


def _flags(row: _Row) -> dict[str, Any]:
    flags: dict[str, Any] = {
        name: row.integer(name)
        for name in ("max_model_len", "max_num_batched_tokens", "max_num_seqs", "block_size")
    }
    flags["gpu_memory_utilization"] = row.number("gpu_memory_utilization")
    caching = row.text("prefix_caching").lower()
    flags["enable_prefix_caching"] = (
        True if caching.startswith("on") else False if caching.startswith("off") else None
    )
    return {name: value for name, value in flags.items() if value is not None}


def _replay(row: _Row) -> Replay:
    text = row.text("replay_class")
    for start, replay in _CLASSES:
        if text.lower().startswith(start.lower()):
            return replay
    if not text:
        return "exact" if row.text("trace_file") else "closed" if row.integer("concurrency") else "law"
    raise ConfigError(
        f"{row.where}: replay_class: got {text!r}, expected one of {', '.join(c for c, _ in _CLASSES)}"
    )


def gpu_name(text: str) -> str:
    """Catalogue name of a GPU as drivers and benchmarks write it; text in brackets is a remark.

    >>> gpu_name("H100-80GB-HBM3 (SXM)"), gpu_name("h100_sxm"), gpu_name("L40S")
    ('h100-sxm', 'h100-sxm', 'l40s')
    """
    plain = re.sub(r"\(.*?\)", "", text).strip().lower().replace("_", "-").replace(" ", "-")
    plain = plain.removeprefix("nvidia-")
    return GPU_NAMES.get(plain, plain)


def _version(text: str) -> str:
    found = re.search(r"\d+(\.\d+)+\w*", text)
    return found.group(0) if found else ""


class _Row:
    """Cells of one row, typed; absent and NaN are None (or "")."""

    def __init__(self, where: str, cells: Mapping[Any, Any]) -> None:
        self.where = where
        self.cells = cells

    def _cell(self, name: str) -> Any:
        value = self.cells.get(name)
        return None if value is None or value != value or value == "" else value

    def text(self, name: str) -> str:
        """A text cell."""
        value = self._cell(name)
        return "" if value is None else str(value)

    def number(self, name: str) -> float | None:
        """A number cell."""
        value = self._cell(name)
        if value is None:
            return None
        try:
            return float(value)
        except ValueError:
            raise ConfigError(f"{self.where}: {name}: got {value!r}, expected a number") from None

    def integer(self, name: str) -> int | None:
        """A whole-number cell."""
        value = self.number(name)
        if value is not None and value != int(value):
            raise ConfigError(f"{self.where}: {name}: got {value}, expected an integer")
        return None if value is None else int(value)


# --- measured values and peers


def _metrics(table: pd.DataFrame | None) -> dict[str, dict[int, dict[str, float]]]:
    """{key: {stage: {metric: value}}}; times in seconds."""
    book: dict[str, dict[int, dict[str, float]]] = {}
    if table is None:
        return book
    wanted = table["metric"].isin(
        [*TIMES, "throughput_requests", "throughput_output_tokens", "failed_fraction"]
    )
    rows: Iterator[Any] = table[wanted & table["stat"].isin(STATS)].itertuples()
    for row in rows:
        is_time = row.metric in TIMES
        name = f"{row.metric}_{row.stat}" if is_time else str(row.metric)
        value = float(row.value) * (1e-3 if is_time and row.unit == "ms" else 1.0)
        book.setdefault(str(row.exp_key), {}).setdefault(int(row.stage), {})[name] = value
    return book


def _peers(table: pd.DataFrame | None) -> dict[str, dict[str, dict[int, dict[str, float]]]]:
    """{key: {peer: {stage: {metric: value}}}}; times in seconds, `itl_mean` under `tpot_mean`."""
    book: dict[str, dict[str, dict[int, dict[str, float]]]] = {}
    if table is None:
        return book
    rows: Iterator[Any] = table.itertuples()
    for row in rows:
        metric = str(row.metric).replace("itl_mean", "tpot_mean")
        scale = 1e-3 if metric.split("_")[0] in TIMES else 1.0
        stages = book.setdefault(str(row.exp_key), {}).setdefault(str(row.peer), {})
        stages.setdefault(int(row.stage), {})[metric] = float(row.predicted) * scale
    return book
