"""The requests of a measured experiment as a `Trace`: as logged, by the arrival law, or a closed loop."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from stepline.traces.errors import ConfigError
from stepline.traces.random_streams import stream
from stepline.traces.trace import Ragged, Trace

from .closed_loops import sweep_of
from .measured import Experiment, Stage

if TYPE_CHECKING:
    import pandas as pd

CLIENT_PAUSE_S = 2.3
"""Between the last answer of a stage and the first request of the next, by the class-A logs (2.0-2.6 s)."""

RETOKENISED = 1.047
"""Prompt tokens that reach the server a token asked for: the client's prompts are decoded to text and encoded again
(mean over the 11 runs of vLLM 0.15.1 with counted prompts: 1.039 to 1.051; the same for every workload)."""

BLOCK = 16
"""Tokens of the blocks in which shared prefixes are stated (vLLM's default block)."""


class Load:
    """A trace with what the folder knows about each of its rows.

    `stage`: int array of shape (n,); `observed`: {`error`, `ttft_s`, `e2e_s`: float arrays (n,)} or None.
    """

    def __init__(
        self,
        trace: Trace,
        stage: NDArray[np.int64],
        observed: dict[str, NDArray[np.float64]] | None = None,
    ) -> None:
        self.trace = trace
        self.stage = stage
        self.observed = observed


def load_of(experiment: Experiment, seed: int = 0) -> Load:
    """The requests of an experiment; `seed` matters for the statistical replay alone.

    Raises:
        ConfigError: something is missing that this replay needs, or the trace file cannot be read.
    """
    if experiment.replay in ("exact", "trace"):
        return _from_file(experiment)
    if experiment.replay == "law":
        return _by_law(experiment, seed)
    return _closed(experiment, seed)


# --- logged requests


def _from_file(experiment: Experiment) -> Load:
    path = experiment.trace_file
    if path is None:
        raise ConfigError(f"{experiment.key}: trace_file: got none, expected one for an exact replay")
    if ".csv" in path.suffixes:
        return _from_table(experiment, path)
    rows = _token_rows(path)
    trace = rows if rows is not None else _read(path)
    return Load(trace, np.full(len(trace), experiment.stages[0].index), _observed(trace))


def _read(path: Path) -> Trace:
    from stepline.traces.reading import read_trace

    return read_trace(path)


def _from_table(experiment: Experiment, path: Path) -> Load:
    import pandas as pd

    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    table = _Columns(path, frame)
    arrival_s = table.numbers("arrival_s", least=0.0)
    inputs, outputs = table.whole("input_tokens", least=1), table.whole("output_tokens", least=1)
    if not len(frame):
        raise ConfigError(f"{path}: got no requests")
    stage = table.whole("stage") if "stage" in frame else np.zeros(len(frame), dtype=np.int64)
    prompts = table.whole("prompt_id") if "prompt_id" in frame else None
    order = np.argsort(arrival_s, kind="stable")
    trace = _trace(experiment, arrival_s[order], inputs[order], outputs[order],
                   None if prompts is None else prompts[order], str(path))  # fmt: skip
    observed = None
    if "ttft_s" in frame and "e2e_s" in frame:
        seen = {name: table.numbers(name, absent=True) for name in ("ttft_s", "e2e_s")}
        observed = {name: column[order] for name, column in (seen | {"error": table.failed()}).items()}
    return Load(trace, stage[order], observed)


class _Columns:
    """Columns of a table of logged requests, checked cell by cell; errors name the line of the file."""

    def __init__(self, path: Path, frame: pd.DataFrame) -> None:
        self.path = path
        self.frame = frame

    def numbers(self, name: str, *, least: float = -math.inf, absent: bool = False) -> NDArray[np.float64]:
        """Floats of shape (n,), none below `least`; an empty cell is NaN where it may be `absent`."""
        import pandas as pd

        if name not in self.frame:
            raise ConfigError(f"{self.path}: missing column {name!r}")
        cells = self.frame[name]
        values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float, na_value=math.nan)
        good = np.isfinite(values) & (values >= least)
        good |= absent & cells.isna().to_numpy()
        expected = "a number" if least == -math.inf else f"a number >= {least:g}"
        self._refuse(name, good, expected)
        return values

    def whole(self, name: str, *, least: float = -math.inf) -> NDArray[np.int64]:
        """Integers of shape (n,)."""
        values = self.numbers(name, least=least)
        self._refuse(name, values == np.round(values), "an integer")
        return values.astype(np.int64)

    def failed(self) -> NDArray[np.float64]:
        """1 for requests that failed, of shape (n,): `error` is a number other than 0, or a text (what went wrong)."""
        import pandas as pd

        if "error" not in self.frame:
            return np.zeros(len(self.frame))
        cells = self.frame["error"]
        values = pd.to_numeric(cells, errors="coerce").to_numpy(dtype=float, na_value=math.nan)
        return np.where(np.isnan(values), cells.notna().to_numpy(), values != 0).astype(float)

    def _refuse(self, name: str, good: NDArray[np.bool_], expected: str) -> None:
        if good.all():
            return
        row = int(np.argmin(good))
        value = self.frame[name].iloc[row]
        got = "nothing" if value != value else str(value)
        raise ConfigError(f"{self.path}:{row + 2}: {name}: got {got}, expected {expected}")


def _observed(trace: Trace) -> dict[str, NDArray[np.float64]] | None:
    """Measured values that the trace itself carries (see `Request.observed`)."""
    column = trace.columns.get("observed")
    if column is None or not any(column):
        return None
    ttft = np.array([_seconds(row, "ttft_ms") for row in column])
    e2e = np.array([_seconds(row, "e2e_ms") for row in column])
    return {"error": np.isnan(ttft).astype(float), "ttft_s": ttft, "e2e_s": e2e}


def _seconds(row: Any, name: str) -> float:
    value = (row or {}).get(name)
    return math.nan if value is None else float(value) / 1e3


def _token_rows(path: Path) -> Trace | None:
    """A JSONL of LLMServingSim (`input_toks`, `output_toks`, `arrival_time_ns`, `input_tok_ids`); None: another format."""
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as lines:
            first = lines.readline()
            if '"input_toks"' not in first:
                return None
            rows = [json.loads(line) for line in (first, *lines) if line.strip()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    rows.sort(key=lambda row: row["arrival_time_ns"])
    inputs = np.array([row["input_toks"] for row in rows], dtype=np.int64)
    return Trace(
        np.array([row["arrival_time_ns"] for row in rows], dtype=float) * 1e-9,
        inputs,
        np.array([row["output_toks"] for row in rows], dtype=np.int64),
        hash_ids=chained([row.get("input_tok_ids") or [] for row in rows]),
        block_size=np.full(len(rows), BLOCK),
        source=str(path),
    )


def chained(prompts: Iterable[list[int]], block: int = BLOCK) -> Ragged:
    """Chained block ids of token-id lists: equal id means equal tokens from the start of the prompt to that block's end."""
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    rows = []
    for tokens in prompts:
        parent, row = -1, []
        for start in range(0, len(tokens), block):
            parent = known.setdefault((parent, tuple(tokens[start : start + block])), len(known))
            row.append(parent)
        rows.append(row)
    return Ragged.from_rows(rows)


# --- by law


def _by_law(experiment: Experiment, seed: int) -> Load:
    """Stages of exponential gaps that sum to the stage's duration, exactly `n_requests` of them; prompts in a cycle."""
    rng = stream(seed, "validate", experiment.key)
    arrivals, stages = [], []
    start_s = 0.0
    for stage in experiment.stages:
        n, duration_s = _amount(experiment, stage)
        gaps = -np.log1p(-rng.random(n))
        times = np.concatenate([[0.0], np.cumsum(gaps)[:-1]]) * (duration_s / gaps.sum())
        arrivals.append(start_s + times)
        stages.append(np.full(n, stage.index))
        start_s += duration_s + CLIENT_PAUSE_S + stage.measured.get("e2e_mean", 0.0)
    arrival_s = np.concatenate(arrivals)
    n = len(arrival_s)
    inputs = np.full(n, input_tokens(experiment))
    outputs = np.full(n, _whole(experiment, "osl_spec", experiment.output_tokens))
    prompts = np.arange(n) % experiment.prompt_cycle if experiment.prompt_cycle else None
    trace = _trace(experiment, arrival_s, inputs, outputs, prompts, f"{experiment.key}, seed {seed}")
    return Load(trace, np.concatenate(stages))


def input_tokens(experiment: Experiment) -> int:
    """Prompt tokens a request: as counted, else as asked for times `RETOKENISED` (synthetic text prompts)."""
    if experiment.input_mean_tokens is not None:
        return round(experiment.input_mean_tokens)
    asked = experiment.input_spec_tokens
    if asked is not None and experiment.replay == "law":
        asked *= RETOKENISED
    return _whole(experiment, "isl_spec", asked)


def _amount(experiment: Experiment, stage: Stage) -> tuple[int, float]:
    n, duration, rate = stage.n_requests, stage.duration_s, stage.rate_per_s
    if n is None and duration is not None and rate is not None:
        n = round(duration * rate)
    if duration is None and n is not None and rate:
        duration = n / rate
    if not n or not duration:
        raise ConfigError(
            f"{experiment.key}: stage {stage.index}: got neither two of n_requests, duration_s, rate_rps"
        )
    return n, duration


def _whole(experiment: Experiment, name: str, value: float | None) -> int:
    if value is None or not value >= 1:
        raise ConfigError(f"{experiment.key}: {name}: got {value}, expected a number of tokens >= 1")
    return round(value)


# --- closed loop


def _closed(experiment: Experiment, seed: int) -> Load:
    """All requests due at once; the concurrency limit of the run sends them. Random tokens: nothing is shared.

    Clients start together and, where lengths are alike, stay as far apart as the first prompts came: no phase is drawn.
    Each asks for exactly the tokens that it gets.
    """
    clients = experiment.concurrency
    if clients is None:
        raise ConfigError(f"{experiment.key}: concurrency: got none, expected one for a closed loop")
    sweep = sweep_of(experiment)
    n = experiment.stages[0].n_requests or clients * sweep.rounds
    rng = stream(seed, "validate", experiment.key)
    inputs = _lengths(rng, input_tokens(experiment), sweep.shortest_frac, n)
    output = _whole(experiment, "osl_spec", experiment.output_tokens)
    outputs = _lengths(rng, output, sweep.shortest_frac, n)
    columns = {"max_output_tokens": outputs.tolist()}
    trace = Trace(np.zeros(n), inputs, outputs, columns=columns, source=experiment.key)
    return Load(trace, np.full(n, experiment.stages[0].index))


def _lengths(rng: np.random.Generator, longest: int, shortest_frac: float, n: int) -> NDArray[np.int64]:
    """`n` lengths, uniform over the integers from `shortest_frac` of the longest to the longest."""
    return rng.integers(max(int(longest * shortest_frac), 1), longest, size=n, endpoint=True)


# --- shared prefixes


def _trace(
    experiment: Experiment,
    arrival_s: NDArray[np.float64],
    inputs: NDArray[np.int64],
    outputs: NDArray[np.int64],
    prompts: NDArray[np.int64] | None,
    source: str,
) -> Trace:
    if prompts is None:
        return Trace(arrival_s, inputs, outputs, source=source)
    size = max(experiment.shared_prefix_tokens // BLOCK, 1) * BLOCK
    ids = [prompt_ids(int(p), int(n), size, experiment) for p, n in zip(prompts, inputs, strict=True)]
    blocks = np.full(len(inputs), size)
    return Trace(arrival_s, inputs, outputs, hash_ids=Ragged.from_rows(ids), block_size=blocks, source=source)


PROMPT_STRIDE = 1 << 20


def prompt_ids(prompt: int, tokens: int, size: int, experiment: Experiment) -> list[int]:
    """Chained ids of prompt number `prompt`, one a block of `size` tokens: the group's prefix, then its own."""
    own = (prompt + 1) * PROMPT_STRIDE
    ids = [own + i for i in range(math.ceil(tokens / size))]
    if experiment.shared_prefix_tokens >= BLOCK and experiment.prompts_per_group:
        ids[0] = prompt // experiment.prompts_per_group
    return ids
