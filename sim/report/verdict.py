"""What bounds a run, and what to try first.

The regimes are those of the roofline and of the diagnosis table in inference texts: compute, weight bandwidth, KV
bandwidth, communication, latency (launches and serial chains), host (scheduler), plus two that only a queueing model
sees: an idle GPU and a KV cache that is full.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from stepline.sim.engine.result import RunResult
from stepline.traces.wording import counted

_NAMES = {
    "compute_bound": "compute",
    "weight_bandwidth_bound": "weight bandwidth",
    "kv_bandwidth_bound": "KV bandwidth",
    "comm": "communication",
    "latency": "kernel latency",
    "host_overhead": "host and scheduler",
    "pipeline_bubble": "waiting for other pipeline stages",
}

IDLE_FRAC = 0.5
"""Above this share of idle GPU time the load, not the hardware, is the limit."""

FULL_FRAC = 0.98
"""From this peak share of KV blocks in use, with preemptions, the cache counts as full."""

RESERVED_FRAC = 0.8
"""From this peak share on, an overloaded run whose seats are not all taken is held back by KV room: the next
sequence did not fit into what is left."""

SEATS_FRAC = 0.95
"""From this share of `max_num_seqs` running on, the seats count as taken."""

_LARGER_BATCHES = "larger batches"

_LESS_RESERVED = "a lower --max-model-len: the policy reserves that much KV for each sequence"

_RESERVED = ": the policy reserves each one's longest possible output"

_RESERVING = ("static", "orca")
"""Policies that reserve KV for a whole sequence when they admit it."""

_TRY = {
    "compute_bound": (
        "fp8 weights (--dtype fp8) where the GPU has fp8 tensor cores",
        "more GPUs: --tp for shorter prompts' TTFT, --replicas for throughput",
    ),
    "weight_bandwidth_bound": (
        f"{_LARGER_BATCHES}: more load per replica costs little until compute or KV reads take over",
        "fewer weight bytes: --dtype fp8 or int4, or spread them with --tp",
    ),
    "kv_bandwidth_bound": (
        "fewer KV bytes: --kv-cache-dtype fp8",
        "a model with fewer KV heads, or --tp to spread the KV reads",
    ),
    "comm": ("a smaller --tp with more --replicas", "a GPU with faster links"),
    "latency": (
        f"{_LARGER_BATCHES} (more load per replica) to share each kernel's fixed time",
        "a smaller --tp: per-GPU kernels are too small to fill the GPU",
    ),
    "host_overhead": (
        "an engine that plans ahead (--engine vllm-v1 overlaps host and GPU)",
        f"{_LARGER_BATCHES}: the host's cost is mostly per step",
    ),
    "pipeline_bubble": (
        f"{_LARGER_BATCHES}: a pipeline of N stages wants N micro-batches of work",
        "tensor parallelism in its place: a larger --tp, a smaller --pp",
    ),
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """`bound` holds most of the GPU time (`frac` of it); `busy_bound` most of the busy time (`busy_frac` of that).

    `overloaded`: work arrives faster than it is served, so latencies grow with the length of the trace.
    `because`: the facts; `try_first`: what to change, most promising first.
    """

    bound: str
    frac: float
    busy_bound: str
    busy_frac: float
    overloaded: bool
    headline: str
    because: tuple[str, ...]
    try_first: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form, tuples as lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def verdict(result: RunResult, summary: Mapping[str, Any]) -> Verdict:
    """Judge a run by its summary (`stepline.sim.report.summary`) and its time series."""
    shares: dict[str, float] = summary["time_frac"]
    busy = {key: shares[key] for key in _NAMES if key in shares}
    top = max(busy, key=lambda key: busy[key])
    busy_total = sum(busy.values())
    state = _State.of(result, summary)
    busy_frac = busy[top] / busy_total if busy_total else 0.0
    return Verdict(
        bound="idle" if state.idle else _NAMES[top],
        frac=shares["idle"] if state.idle else busy[top],
        busy_bound=_NAMES[top],
        busy_frac=busy_frac,
        overloaded=state.overloaded,
        headline=_headline(
            state, shares["idle"], f"{_NAMES[top]} bounds {busy_frac:.0%} of the busy GPU time"
        ),
        because=_facts(summary, state, result.config),
        try_first=(
            *_for_long_ones(summary["requests"], result.config),
            *[text for text in _advice(top, state) if not _is_done(text, result.config)],
        ),
    )


@dataclass(frozen=True, slots=True)
class _State:
    """What the queueing side of a run looks like. `seats`: most sequences running at once, per replica."""

    idle: bool
    unserved: bool
    overloaded: bool
    kv_short: bool
    seats_taken: bool
    seats: float
    max_num_seqs: int | None
    reserves: bool

    @classmethod
    def of(cls, result: RunResult, summary: Mapping[str, Any]) -> _State:
        overloaded = is_overloaded(result)
        limit = result.config.get("max_num_seqs")
        running: list[float] = list(result.totals.series.get("running", ()))
        seats = float(max(running, default=0.0)) / max(1, result.config.get("replicas") or 1)
        taken = limit is not None and seats >= SEATS_FRAC * limit
        peak = summary["kv"]["peak_used_frac"] or 0.0
        preempted = summary["requests"]["preemptions"] > 0
        short = (peak >= FULL_FRAC and preempted) or (overloaded and not taken and peak >= RESERVED_FRAC)
        idle = summary["time_frac"]["idle"] > IDLE_FRAC and not overloaded
        reserves = str(result.config.get("policy", "")).partition(":")[0] in _RESERVING
        unserved = not summary["requests"]["completed"]
        return cls(idle, unserved, overloaded, short, taken, seats, limit, reserves)


def is_overloaded(result: RunResult) -> bool:
    """True when the waiting queue grew while requests arrived: twice as long in the last quarter of the arrivals
    as in the second, and longer there than what runs.

    A run too short for four bins of its time series is never called overloaded.
    """
    series = result.totals.series
    if not len(series) or not len(result.requests):
        return False
    last = result.requests["arrival_s"].max()
    begin = result.requests["arrival_s"].min()
    times = series["t_s"].to_numpy()
    arriving = (times >= begin) & (times <= last)
    quarters = np.array_split(np.flatnonzero(arriving), 4)
    if any(len(q) == 0 for q in quarters):
        return False
    waiting = series["waiting"].to_numpy()
    running = series["running"].to_numpy()
    early, late = waiting[quarters[1]].mean(), waiting[quarters[3]].mean()
    return bool(late > 2 * early and late > running[quarters[3]].mean() and late >= 1)


def _headline(state: _State, idle_frac: float, steps: str) -> str:
    if state.unserved:
        return "No request was completed."
    if state.overloaded:
        room = f"no KV room for more sequences{_RESERVED if state.reserves else ''}"
        cause = room if state.kv_short else steps
        return f"Overloaded: requests queue faster than they are served; {cause}."
    if state.idle:
        return f"The GPU idles {idle_frac:.0%} of the time: the load is small; {steps}."
    if state.kv_short:
        return f"The KV cache is full and sequences are preempted; {steps}."
    idle = f"the GPU idles {idle_frac:.0%} of the time" if idle_frac >= 0.005 else "the GPU is never idle"
    return f"{steps[0].upper()}{steps[1:]}; {idle}."


def _facts(summary: Mapping[str, Any], state: _State, config: Mapping[str, Any]) -> tuple[str, ...]:
    facts = []
    mfu, mbu = summary["mfu_frac"], summary["mbu_frac"]
    if mfu is not None and mbu is not None:
        facts.append(f"while steps run, {mfu:.0%} of peak FLOP/s and {mbu:.0%} of HBM bandwidth are used")
    if state.overloaded:
        facts.append("the waiting queue was still growing when the last request arrived")
    if state.kv_short or state.seats_taken:
        limit = "" if state.max_num_seqs is None else f" of {counted(state.max_num_seqs, 'seat')}"
        facts.append(
            f"at most {state.seats:.0f}{limit} were taken, KV blocks peak at "
            f"{summary['kv']['peak_used_frac']:.0%}, {counted(summary['requests']['preemptions'], 'preemption')}"
        )
    queue, e2e = summary["queue_s"]["mean"], summary["e2e_s"]["mean"]
    if queue is not None and e2e and queue > 0.1 * e2e:
        facts.append(f"requests wait {queue:.3g} s of {e2e:.3g} s in the queue")
    return (*facts, *_lost(summary["requests"], config))


_OTHER_REASONS = ("admission", "fleet", "disaggregate", "failures")
"""Settings under which a request can be rejected for more than its length."""


def _lost(requests: Mapping[str, Any], config: Mapping[str, Any]) -> list[str]:
    """How many requests got no answer, and why."""
    facts = []
    limit = _length_limit(config)
    why = f": longer than {limit}" if limit else ""
    if requests["rejected"]:
        facts.append(
            f"{counted(requests['rejected'], 'request', of=requests['submitted'])} {_were(requests['rejected'])} rejected{why}"
        )
    if requests["timed_out"]:
        facts.append(f"{counted(requests['timed_out'], 'request', of=requests['submitted'])} timed out")
    return facts


def _length_limit(config: Mapping[str, Any]) -> str:
    """What a rejected request was too long for ("": it may have been rejected for something else)."""
    length, blocks, size = (config.get(key) for key in ("max_model_len", "kv_blocks", "block_size"))
    if not (length and blocks and size) or any(config.get(key) for key in _OTHER_REASONS):
        return ""
    room = blocks * size
    return f"--max-model-len {length:,}" if length <= room else f"the KV cache of {room:,} tokens"


def _for_long_ones(requests: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[str, ...]:
    """What lets those in that were too long; nothing for what the model itself does not take."""
    limit = _length_limit(config) if requests["rejected"] else ""
    if not limit:
        return ()
    if not limit.startswith("--"):
        return ("KV room for the longest request: more blocks, a larger --tp, or a GPU with more memory",)
    own = (config.get("model_spec") or {}).get("max_model_len")
    return ("a longer --max-model-len",) if own and config["max_model_len"] < own else ()


def _were(n: int) -> str:
    return "was" if n == 1 else "were"


def _is_done(text: str, config: Mapping[str, Any]) -> bool:
    """True for advice that the run follows already: narrow weights, narrow KV."""
    narrow = ("fp8", "int8", "int4", "fp4")
    weights = (config.get("model_spec") or {}).get("weight_dtype")
    if " --dtype " in text or "(--dtype " in text:
        return weights in narrow
    return "fewer KV bytes" in text and str(config.get("kv_cache_dtype", "")).startswith(narrow)


def _advice(top: str, state: _State) -> tuple[str, ...]:
    if state.unserved:
        return ()
    if state.idle:
        return ("fewer or cheaper GPUs, or more load per replica; latency is already near its floor",)
    advice: tuple[str, ...] = ()
    if state.kv_short:
        advice += ("more room for KV: --kv-cache-dtype fp8, a larger --tp, or a GPU with more memory",)
        advice += (_LESS_RESERVED,) if state.reserves else ()
    if state.overloaded and state.seats_taken:
        advice += ("more seats: a larger --max-num-seqs",)
    if state.overloaded:
        advice += ("more --replicas, or less load per replica",)
    steps = [text for text in _TRY[top] if not (state.overloaded and text.startswith(_LARGER_BATCHES))]
    return (*advice, *steps)
