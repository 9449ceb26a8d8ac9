"""Runs the experiments of a measured folder: which settings, which are skipped and why, what each stage gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.traces.errors import CalibrationError, ConfigError, InputError

from ..cost.catalogue import known_engines, load_engine
from ..engine.request_log import FINISHED
from .closed_loops import sweep_of
from .config import RunConfig
from .measured import Experiment
from .run import simulate_resolved
from .setup import Setup, resolve
from .validation_traces import Load, load_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNRECORDED = {"vllm": "vllm-unrecorded"}
"""Profile of a published trace whose engine version nobody recorded: those of 2025 are older than async scheduling by
default (vLLM 0.14)."""

FAMILIES = {
    "vllm": "vllm-v1",
    "sglang": "sglang",
    "trtllm": "trtllm",
    "tensorrt-llm": "trtllm",
    "tensorrt_llm": "trtllm",
}
"""Engine name in a folder: profile that stands for the family where no version of it is known."""

SINCE = {"vllm-v0": (0,), "vllm-0.12": (0, 8), "vllm-0.15.1": (0, 14)}
"""Version from which a profile's loop is the default one, where that is before the version it was fitted on: V1 since
vLLM 0.8, async scheduling since 0.14 (release notes)."""

QUANTISED = {
    "w4a16": "int4", "int4": "int4", "awq": "int4", "gptq": "int4", "w8a8": "int8", "int8": "int8", "nvfp4": "nvfp4",
}  # fmt: skip
"""What a precision contains, as published checkpoints call it: `--dtype`."""

PROMPTS_FIRST = "continuous"
"""SGLang computes waiting prompts in steps of their own before it decodes on (`enable_mixed_chunk` is off by default), and so
did vLLM V0."""

WHOLE_PROMPTS = "orca"
"""TensorRT-LLM: `enable_chunked_prefill` is off by default, so an iteration holds whole prompts beside all decodes, and
its default capacity scheduler, `GUARANTEED_NO_EVICT`, admits a request only with room for all it may generate."""

TRANSFER = "prefill={},decode={},link=nvlink,connector=p2p-nccl"
ASSUMED = (
    "prefill and decode on different instances: how KV moved is not recorded; NVLink and a connector that works layer by "
    "layer (vLLM's P2pNccl) are assumed"
)
"""A run on two pools: settings, and what a reader must know of them."""

HOST_KV_GIB = 8.0
HOST_KV = (
    f"KV was copied to host memory of a size that is not recorded: {HOST_KV_GIB:g} GiB are assumed (between 4 and 11 the "
    "two runs that fill it begin to suffer when they did)"
)
"""GiB of a server whose folder says that it copied KV to host memory, and what a reader must know."""

MOE_WARM_UP_REQUESTS = 300
"""Class-A MoE runs are scored from this request on: before, JIT stalls of 0.3-1.4 s hit the first requests."""

LAW_SEEDS = 3
"""Replications of a statistical replay."""


@dataclass(frozen=True, slots=True)
class StageValues:
    """What one stage gave, predicted and measured, by metric (seconds; throughput per second).

    `spread`: standard deviation of the prediction over seeds (empty for exact replays).
    """

    stage: int
    predicted: Mapping[str, float]
    measured: Mapping[str, float]
    spread: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One experiment: its stages' values, or why it was skipped.

    `samples`: {stage: (predicted, measured)} rows (ttft_s, e2e_s) of an exact replay, for pictures, else {}.
    """

    experiment: Experiment
    stages: tuple[StageValues, ...] = ()
    skipped: str = ""
    engine: str = ""
    samples: Mapping[int, tuple[NDArray[np.float64], NDArray[np.float64]]] | None = None
    warnings: tuple[str, ...] = ()
    wall_s: float = 0.0

    @property
    def overloaded(self) -> bool:
        """Whether clients gave up (measured): scored apart."""
        return any(s.measured.get("failed_fraction", 0.0) > 0 for s in self.stages)


def engine_for(experiment: Experiment) -> str:
    """Profile of the experiment's engine: the newest whose loop was the default by its version, else the family's.

    Raises:
        ConfigError: an engine nobody has described.
    """
    family = experiment.engine.lower()
    names = known_engines()
    if family not in FAMILIES:
        if family in names:
            return family
        raise ConfigError(f"engine {experiment.engine!r}: no such engine profile")
    version = _numbers(experiment.engine_version)
    if not version and experiment.replay == "trace":
        return UNRECORDED.get(family, FAMILIES[family])
    known = {
        name: SINCE.get(name) or _numbers(name.removeprefix(f"{family}-"))
        for name in names
        if name.startswith(f"{family}-")
    }
    older = {name: number for name, number in known.items() if number and number <= version}
    return max(older, key=lambda name: older[name], default=FAMILIES[family])


def _numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version; () for a text that is none.

    >>> _numbers("0.5.1.post1"), _numbers("v1")
    ((0, 5, 1), ())
    """
    numbers = []
    for part in text.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def settings_for(experiment: Experiment) -> RunConfig:
    """The run that the experiment describes; what it does not say is the engine's default.

    Raises:
        ConfigError: something that cannot be simulated.
    """
    settings: dict[str, Any] = dict(experiment.flags)
    dtype = _dtype(experiment)
    if dtype:
        settings["dtype"] = dtype
    family = experiment.engine.lower()
    if family == "sglang":
        settings["policy"] = PROMPTS_FIRST
    if experiment.replay == "closed":
        settings = {**sweep_of(experiment).flags(experiment), **settings}  # what the folder knows counts
        settings["max_concurrency"] = experiment.concurrency
        settings["generation_config"] = "greedy"  # what load generators of serving benchmarks ask for
        if FAMILIES.get(family) == "trtllm":
            settings["policy"] = WHOLE_PROMPTS
    if settings.get("dtype") == "fp8" and FAMILIES.get(family) == "trtllm":
        settings["kv_cache_dtype"] = "fp8"  # TensorRT-LLM's fp8 checkpoints (ModelOpt) carry an fp8 KV cache
    engine = engine_for(experiment)
    if engine == "vllm-v0":
        settings.setdefault("policy", PROMPTS_FIRST)
    if experiment.offloads_kv and settings.get("enable_prefix_caching", True):
        settings["kv_offloading_size"] = HOST_KV_GIB
    if experiment.pools is not None:
        settings["disaggregate"] = TRANSFER.format(*experiment.pools)
    if experiment.replay == "closed":
        settings.setdefault("max_num_seqs", _seats(engine, experiment.concurrency))
    return RunConfig(
        model=experiment.model,
        gpu=experiment.gpu,
        tensor_parallel_size=experiment.tp,
        replicas=sum(experiment.pools or (experiment.replicas,)),
        engine=engine,
        num_gpu_blocks_override=experiment.kv_blocks,
        client_timeout=experiment.timeout_s,
        **settings,
    )


def _dtype(experiment: Experiment) -> str:
    """Weights that differ from the checkpoint's own; "" for those as the model has them."""
    precision = experiment.precision.lower()
    if "fp8" in precision:
        return "" if "fp8" in experiment.model.lower() else "fp8"
    quantised = next((dtype for name, dtype in QUANTISED.items() if name in precision), None)
    if quantised is not None:
        return quantised
    return "" if "bf16" in precision or "fp16" in precision else precision


def _seats(engine: str, concurrency: int | None) -> int:
    """Seats of a server whose flags are not recorded: the engine's default, never fewer than the clients."""
    return max(int(load_engine(engine).defaults.get("max_num_seqs", 256)), concurrency or 1)


def run_experiment(experiment: Experiment, *, seeds: int = LAW_SEEDS, setup: Setup | None = None) -> Outcome:
    """Replay one experiment; what cannot be simulated comes back as skipped, with the reason."""
    try:
        setup = setup or resolve(settings_for(experiment))
        loads = [load_of(experiment, seed) for seed in range(seeds if experiment.replay == "law" else 1)]
    except (ConfigError, CalibrationError, InputError) as error:
        return Outcome(experiment, skipped=" ".join(str(error).split()))
    runs = [_replayed(setup, load) for load in loads]
    predicted = [_by_stage(experiment, load, run) for load, run in zip(loads, runs, strict=True)]
    measured = _measured(experiment, loads[0])
    stages = tuple(
        StageValues(
            stage,
            _mean([p[stage] for p in predicted]),
            measured.get(stage, {}),
            _spread([p[stage] for p in predicted]),
        )
        for stage in predicted[0]
    )
    return Outcome(
        experiment,
        stages,
        engine=setup.config.engine,
        samples=_samples(experiment, loads[0], runs[0]),
        warnings=(*setup.warnings, *_assumed(experiment, setup)),
    )


def _assumed(experiment: Experiment, setup: Setup) -> tuple[str, ...]:
    """What is not recorded of the server and was assumed."""
    return (*([ASSUMED] if experiment.pools else []), *([HOST_KV] if setup.config.kv_offloading_size else []))


@dataclass(frozen=True, slots=True)
class Timings:
    """Requests in the order of the trace, arrays of shape (n,): `ok` finished, times in seconds (NaN where not)."""

    ok: NDArray[np.bool_]
    arrival_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    ttft_s: NDArray[np.float64]
    e2e_s: NDArray[np.float64]
    outputs: NDArray[np.int64]

    def rows(self, mask: NDArray[np.bool_]) -> Timings:
        """Those of `mask`."""
        return Timings(*(getattr(self, field.name)[mask] for field in fields(self)))


def _replayed(setup: Setup, load: Load) -> Timings:
    requests = simulate_resolved(load.trace, setup).requests.sort_values("request_index")
    ok = requests["status"].to_numpy() == FINISHED
    arrival, finish = requests["arrival_s"].to_numpy(), requests["finish_s"].to_numpy()
    ttft = np.where(ok, requests["first_token_s"].to_numpy() - arrival, np.nan)
    e2e = np.where(ok, finish - arrival, np.nan)
    return Timings(ok, arrival, finish, ttft, e2e, load.trace.output_tokens)


def _logged(load: Load) -> Timings | None:
    """What the clients of a logged run saw; None where the trace carries no measured times."""
    if load.observed is None:
        return None
    seen, trace = load.observed, load.trace
    ok = (seen["error"] == 0) & np.isfinite(seen["e2e_s"])
    finish = trace.arrival_s + seen["e2e_s"]
    return Timings(ok, trace.arrival_s, finish, seen["ttft_s"], seen["e2e_s"], trace.output_tokens)


def scored_rows(experiment: Experiment, load: Load, stage: int) -> NDArray[np.bool_]:
    """Rows of a stage that count: all, but class-A MoE runs from request 300 on."""
    rows: NDArray[np.bool_] = load.stage == stage
    if experiment.replay == "exact" and experiment.arch == "moe":
        rows &= np.arange(len(rows)) >= MOE_WARM_UP_REQUESTS
    return rows


def _by_stage(experiment: Experiment, load: Load, timings: Timings) -> dict[int, dict[str, float]]:
    return {
        stage.index: stage_metrics(timings.rows(scored_rows(experiment, load, stage.index)))
        for stage in experiment.stages
    }


def stage_metrics(timings: Timings) -> dict[str, float]:
    """Metrics of one stage: times over the finished requests (percentiles: linear), rates from its first arrival to its
    last end; `last_survivor_s`: see `last_served`, since the stage began."""
    ok = timings.ok
    if not len(ok):
        return {}
    span = timings.finish_s.max() - timings.arrival_s.min()
    values = {
        "throughput_requests": ok.sum() / span,
        "throughput_output_tokens": timings.outputs[ok].sum() / span,
        "failed_fraction": 1.0 - ok.mean(),
    }
    done = timings.rows(ok)
    tokens = done.outputs - 1
    several = tokens > 0
    tpot = (done.e2e_s - done.ttft_s)[several] / tokens[several]
    last = last_served(timings)
    if last is not None:
        values["last_survivor_s"] = last - timings.arrival_s.min()
    for name, times in (("ttft", timings.ttft_s[ok]), ("tpot", tpot), ("e2e", done.e2e_s)):
        if len(times):
            values[f"{name}_mean"] = times.mean()
            for q in (50, 90, 99):
                values[f"{name}_p{q}"] = np.percentile(times, q)
    return {name: float(value) for name, value in values.items()}


def last_served(timings: Timings) -> float | None:
    """The last arrival before the collapse (s): the one that best parts requests that finished from those that gave up.

    Where every request after some moment gives up it is the last that finished. A few that slip through later, when
    nobody arrives any more and the server runs empty, do not move it. None where all or most gave up from the start.
    """
    order = np.argsort(timings.arrival_s, kind="stable")
    balance = np.cumsum(np.where(timings.ok[order], 1, -1))
    best = len(balance) - 1 - int(np.argmax(balance[::-1]))
    return float(timings.arrival_s[order[best]]) if balance[best] > 0 else None


def _measured(experiment: Experiment, load: Load) -> Mapping[int, Mapping[str, float]]:
    """Measured values by stage: from the logged requests where there are any, else the folder's aggregates."""
    logged = _logged(load)
    if logged is None:
        return {stage.index: stage.measured or experiment.whole for stage in experiment.stages}
    return _by_stage(experiment, load, logged)


def _samples(
    experiment: Experiment, load: Load, run: Timings
) -> dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """{stage: (predicted, measured)}, columns TTFT and E2E (NaN where a request failed)."""
    logged = _logged(load)
    if logged is None:
        return {}
    book = {}
    for stage in experiment.stages:
        pair = [t.rows(scored_rows(experiment, load, stage.index)) for t in (run, logged)]
        ours, theirs = (
            np.column_stack([np.where(t.ok, t.ttft_s, np.nan), np.where(t.ok, t.e2e_s, np.nan)]) for t in pair
        )
        book[stage.index] = (ours, theirs)
    return book


def _mean(values: list[dict[str, float]]) -> dict[str, float]:
    names = values[0].keys() & set.intersection(*[set(v) for v in values])
    return {name: float(np.mean([v[name] for v in values])) for name in values[0] if name in names}


def _spread(values: list[dict[str, float]]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    return {name: float(np.std([v[name] for v in values], ddof=1)) for name in _mean(values)}
