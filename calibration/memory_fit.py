"""The memory constants of engine versions, fitted to measured start-ups; and how well they predict models left out.

`python -m stepline.calibration.memory_fit DIR` (DIR holds `kv_ledger.csv` and, if there, `experiments.csv.gz`) prints the
constants of `sim/cost/data/memory.toml` and the error of every start-up, fitted and with its model left out.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from stepline.sim.cost.activation_peak import activation_peak
from stepline.sim.cost.catalogue import load_gpu, load_model
from stepline.sim.cost.memory_constants import MemoryConstants, memory_constants
from stepline.sim.cost.memory_ledger import GIB, Flags, MemoryLedger, ledger
from stepline.sim.cost.specs import Dtype, ModelSpec
from stepline.traces.errors import CalibrationError, ConfigError

BLOCK_TOKENS = 16
TABLE_DEFAULTS = {"max_num_batched_tokens": 8192, "max_num_seqs": 1024}
"""vLLM 0.19's API-server defaults on a GPU of 70 GiB and more (`EngineArgs`), under which kv_ledger.csv was taken."""

_FITTED = ("sampler_bytes_per_logit", "sampler_copies", "forward_copies", "workspace_bytes")


@dataclass(frozen=True, slots=True)
class StartUp:
    """One measured engine start: its inputs, the blocks it reported and, to explain them, its measured parts (GiB)."""

    model: ModelSpec
    version: str
    gpu: str
    tp: int
    pp: int
    utilization: float
    tokens: int
    seqs: int
    kv_dtype: Dtype
    weight_dtype: Dtype | None
    blocks: int
    activation_gib: float | None = None
    non_torch_gib: float | None = None


@dataclass(frozen=True, slots=True)
class BlockError:
    """Predicted against measured blocks of one start-up; `left_out` with its model kept from the fit."""

    start: StartUp
    blocks: int
    error_frac: float
    left_out_frac: float


def read_table(path: Path) -> list[StartUp]:
    """Start-ups of a table like `kv_ledger.csv` whose model is in the catalogue.

    Raises:
        CalibrationError: a column is missing or the file cannot be read.
    """
    columns = ("model", "tp", "pp", "dtype", "quantization", "kv_cache_dtype", "kv_cache_blocks")
    parts = ("gpu_memory_utilization", "activation_memory_gib", "non_torch_forward_gib")
    return [_table_row(row, model) for row, model in _rows(path, (*columns, *parts))]


def read_runs(path: Path) -> list[StartUp]:
    """Distinct start-ups of runs (`experiments.csv.gz`) whose KV blocks are marked measured; estimates are left out.

    Raises:
        CalibrationError: a column is missing or the file cannot be read.
    """
    keys = [
        "model",
        "tp",
        "max_num_batched_tokens",
        "max_num_seqs",
        "gpu_memory_utilization",
        "kv_blocks_gpu",
    ]
    distinct = {}
    for row, model in _rows(path, (*keys, "kv_blocks_source")):
        if str(row["kv_blocks_source"]).startswith("measured"):
            distinct[tuple(str(row[key]) for key in keys)] = _run_row(row, model)
    return [distinct[key] for key in sorted(distinct)]


def _table_row(row: dict[str, Any], model: ModelSpec) -> StartUp:
    fp32 = "float32" in str(row["dtype"])
    return StartUp(
        model=model,
        version="vllm-0.19",
        gpu="h100-sxm",
        tp=int(row["tp"]),
        pp=int(row["pp"]),
        utilization=float(row["gpu_memory_utilization"]),
        tokens=TABLE_DEFAULTS["max_num_batched_tokens"],
        seqs=TABLE_DEFAULTS["max_num_seqs"],
        kv_dtype="fp8" if row["kv_cache_dtype"] == "fp8" else "fp32" if fp32 else "bf16",
        weight_dtype="fp32" if fp32 else "fp8" if row["quantization"] == "fp8" else None,
        blocks=int(row["kv_cache_blocks"]),
        activation_gib=float(row["activation_memory_gib"]),
        non_torch_gib=float(row["non_torch_forward_gib"]),
    )


def _run_row(row: dict[str, Any], model: ModelSpec) -> StartUp:
    return StartUp(
        model=model,
        version="vllm-0.15.1",
        gpu="h100-sxm",
        tp=int(row["tp"]),
        pp=1,
        utilization=float(row["gpu_memory_utilization"]),
        tokens=int(row["max_num_batched_tokens"]),
        seqs=int(row["max_num_seqs"]),
        kv_dtype="bf16",
        weight_dtype=None,
        blocks=int(row["kv_blocks_gpu"]),
    )


def fit_activations(starts: Iterable[StartUp], constants: MemoryConstants) -> MemoryConstants:
    """`constants` with the activation constants and the non-torch sizes refitted to the measured parts of `starts`.

    Four numbers by robust least squares (soft L1 at 16 MiB) over all start-ups with a measured activation peak; the
    non-torch bytes of a TP size are the median of its column.
    """
    from scipy.optimize import least_squares

    rows = [s for s in starts if s.activation_gib is not None and s.pp == 1]
    first = [constants.sampler_bytes_per_logit, constants.sampler_copies, constants.forward_copies]

    def residuals(x: Sequence[float]) -> list[float]:
        trial = _with(constants, x)
        return [_activation(s, trial) / GIB - (s.activation_gib or 0.0) for s in rows]

    found = least_squares(residuals, [*first, 32 / 1024], loss="soft_l1", f_scale=1 / 64)
    by_tp = {
        tp: GIB * statistics.median(s.non_torch_gib or 0.0 for s in rows if s.tp == tp)
        for tp in sorted({s.tp for s in rows})
    }
    return replace(_with(constants, found.x), non_torch=by_tp)


def fit_non_torch(starts: Iterable[StartUp], constants: MemoryConstants) -> MemoryConstants:
    """`constants` with the non-torch bytes of each TP size set so that the median start-up has its measured blocks."""
    rows = list(starts)
    zero = replace(constants, non_torch=dict.fromkeys((1, 2, 4, 8), 0.0))
    missing: dict[int, list[float]] = {}
    for start in rows:
        books = predict(start, zero)
        missing.setdefault(start.tp, []).append(books.kv_bytes - (start.blocks + 0.5) * books.block_bytes)
    return replace(constants, non_torch={tp: statistics.median(m) for tp, m in sorted(missing.items())})


def fit(starts: Sequence[StartUp], version: str) -> MemoryConstants:
    """Constants of `version` fitted to `starts`: of measured parts where they have them, else of blocks alone."""
    constants = memory_constants(version)
    parts = [s for s in starts if s.activation_gib is not None]
    return fit_activations(parts, constants) if parts else fit_non_torch(starts, constants)


def predict(start: StartUp, constants: MemoryConstants) -> MemoryLedger:
    """The ledger of a start-up under `constants`, from its inputs alone."""
    flags = Flags(start.utilization, start.tokens, start.seqs, BLOCK_TOKENS, constants)
    gpu = load_gpu(start.gpu)
    return ledger(start.model, gpu, flags, start.tp, start.pp, start.kv_dtype, start.weight_dtype)


def errors(starts: Sequence[StartUp]) -> list[BlockError]:
    """Error of each start-up under the committed constants and, refitted, with all rows of its model left out."""
    table = []
    for start in starts:
        books = predict(start, memory_constants(start.version))
        others = [s for s in starts if s.version == start.version and s.model.name != start.model.name]
        unseen = predict(start, fit(others, start.version))
        error = books.n_blocks / start.blocks - 1
        table.append(BlockError(start, books.n_blocks, error, unseen.n_blocks / start.blocks - 1))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Print the refitted constants and the table of errors; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="memory_fit", description="Fit the memory constants of engine versions."
    )
    parser.add_argument(
        "folder", type=Path, help="folder with kv_ledger.csv and, optionally, experiments.csv.gz"
    )
    folder = parser.parse_args(argv).folder
    runs = folder / "experiments.csv.gz"
    sets = [read_table(folder / "kv_ledger.csv"), read_runs(runs) if runs.exists() else []]
    for starts in filter(None, sets):
        _print_fit(fit(starts, starts[0].version))
        _print_errors(errors(starts))
    return 0


def _activation(start: StartUp, constants: MemoryConstants) -> float:
    return activation_peak(
        start.model,
        constants,
        tp=start.tp,
        max_num_batched_tokens=start.tokens,
        max_num_seqs=start.seqs,
        weight_dtype=start.weight_dtype,
    ).bytes


def _with(constants: MemoryConstants, x: Sequence[float]) -> MemoryConstants:
    values = dict(zip(_FITTED, (float(v) for v in x), strict=True))
    values["workspace_bytes"] *= GIB
    return replace(constants, **values)  # type: ignore[arg-type]  # the four fitted fields are floats


def _rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[dict[str, Any], ModelSpec]]:
    """Rows of a CSV file whose model is in the catalogue, with it; others are no data of ours to explain."""
    import pandas as pd

    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: cannot be read ({error})") from None
    for column in columns:
        if column not in frame:
            raise CalibrationError(f"{path}: column {column} is missing")
    for row in frame.to_dict("records"):
        try:
            yield {str(key): value for key, value in row.items()}, load_model(str(row["model"]))
        except ConfigError:
            continue


def _print_fit(constants: MemoryConstants) -> None:
    print(f"[{constants.version}]")
    for name in _FITTED[:3]:
        print(f"  {name} = {getattr(constants, name):.3f}")
    print(f"  workspace_mib = {constants.workspace_bytes / 2**20:.1f}")
    sizes = ", ".join(f"{tp} = {size / 2**20:.0f}" for tp, size in constants.non_torch.items())
    print(f"  non_torch_mib = {{ {sizes} }}")


def _print_errors(table: Sequence[BlockError]) -> None:
    for row in table:
        s = row.start
        stored = s.weight_dtype or s.model.weight_dtype
        print(
            f"  {s.model.name:22} tp{s.tp} pp{s.pp} {stored:4} kv {s.kv_dtype:4} tokens {s.tokens:4} "
            f"measured {s.blocks:6} predicted {row.blocks:6} {100 * row.error_frac:+6.2f} % "
            f"left out {100 * row.left_out_frac:+6.2f} %"
        )
    for name, column in (("fitted", "error_frac"), ("model left out", "left_out_frac")):
        sizes = [abs(getattr(row, column)) for row in table]
        print(f"  {name}: median {100 * statistics.median(sizes):.3f} %, worst {100 * max(sizes):.2f} %")


if __name__ == "__main__":
    raise SystemExit(main())
