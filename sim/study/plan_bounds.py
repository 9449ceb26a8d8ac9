"""What no schedule can beat: bounds on rate and latency from FLOPs and bytes alone, before anything is simulated.

Every step lasts at least FLOPs / peak and bytes / bandwidth of its work (the cost model's own floor), so the same holds
of sums over steps. A request needs its uncached prompt computed and its context read for each token; weights are read
once a step, and a step serves at most `max_num_seqs` tokens and as many contexts as the KV cache holds. A cost model that
tells no FLOPs and bytes gets no bounds, and then nothing is pruned by them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..cost.roofline import context_column
from ..cost.work import StepWork

if TYPE_CHECKING:
    from stepline.traces.trace import Trace

    from ..cluster.spec import ReplicaSpec
    from ..report.slo import Slo

Floats = NDArray[np.float64]

STEP_TOKENS = 16_384
"""Tokens of the step whose work is taken for the mean mix: large enough that every expert is touched."""

ROUNDING = 1.001
"""Room for the whole numbers of tokens in that step."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`rate_per_s`: no replica serves more requests a second (inf: unknown). `misses`: a limit of the SLO that even an
    empty replica cannot meet, or None."""

    rate_per_s: float
    misses: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Demand:
    """Tokens of each request: prompt, prompt that no cache could save, output. int64 (n,)."""

    inputs: NDArray[np.int64]
    uncached: NDArray[np.int64]
    outputs: NDArray[np.int64]


def demand_of(trace: Trace, *, caching: bool) -> Demand:
    """What a trace asks for at least: of prompts with ids, only what no earlier request has (one cache without end)."""
    inputs = trace.input_tokens.astype(np.int64)
    uncached = inputs.copy()
    if caching and trace.hash_ids is not None and trace.block_size is not None:
        seen: set[int] = set()
        for i in range(len(trace)):
            ids = trace.hash_ids.row(i) or ()
            known = next((k for k, key in enumerate(ids) if key not in seen), len(ids))
            seen.update(ids[known:])
            if trace.output_hash_ids is not None:
                seen.update(trace.output_hash_ids.row(i) or ())
            uncached[i] = max(1, inputs[i] - known * int(trace.block_size[i]))
    return Demand(inputs, uncached, trace.output_tokens.astype(np.int64))


def bounds(spec: ReplicaSpec, demand: Demand, slo: Slo | None) -> Bounds:
    """The bounds of one replica under this demand; none where a step emits several tokens of a sequence."""
    if spec.tape is not None:
        return Bounds(float("inf"), None)
    return Bounds(rate_bound(spec, demand), _miss(spec, demand, slo) if slo else None)


def rate_bound(spec: ReplicaSpec, demand: Demand) -> float:
    """Requests per second that one replica cannot exceed in the long run (inf where nothing is known).

    1 / max(F / peak, (B + W · steps) / bandwidth) with F, B the mean FLOPs and bytes of a request without weights,
    W the weights' bytes and `steps` the fewest decode steps a request can account for.
    """
    flops, moved = _per_request(spec, demand)
    steps = _fewest_steps(spec, demand) / len(demand.inputs)
    seconds = max(flops / _peak(spec), (moved + _weight_bytes(spec) * steps) / spec.gpu.hbm_bytes_per_s)
    return ROUNDING / seconds if seconds > 0 else float("inf")


def _per_request(spec: ReplicaSpec, demand: Demand) -> tuple[float, float]:
    """Mean FLOPs and bytes of a request, without the weights that the requests of a step share.

    The difference between two large steps of the mean mix, one twice the other: what both read once cancels.
    """
    means = {name: float(v.mean()) for name, v in _columns(spec, demand).items()}
    share = STEP_TOKENS / (means["prefill_tokens"] + means["n_decode"])
    works = {name: np.round(np.array([1.0, 2.0]) * share * v) for name, v in means.items()}
    _, flops, moved = spec.cost_model.explain_many(works)
    return float(flops[1] - flops[0]) / share, float(moved[1] - moved[0]) / share


def _columns(spec: ReplicaSpec, demand: Demand) -> dict[str, Floats]:
    """The whole life of each request as one step: its work, without the weights that steps share."""
    c = demand.uncached.astype(np.float64)
    total, decodes = demand.inputs.astype(np.float64), demand.outputs.astype(np.float64) - 1.0
    columns: dict[str, Floats] = {
        "prefill_tokens": c,
        "prefill_seqs": np.ones(len(c)),
        "attention_pairs": c * (total - c) + c * (c + 1) / 2,
        "prefill_kv_tokens": total,
        "n_decode": decodes,
        "logits_rows": demand.outputs.astype(np.float64),
    }
    for i, (window, _) in enumerate(spec.model.windows):
        context = decodes * (total + (demand.outputs - 1) / 2) + decodes / 2
        if window is not None:
            context = np.minimum(context, decodes * window)
            # a window caps what is read of prompts too; pairs and keys within it are the floor
            columns["attention_pairs"] = np.minimum(columns["attention_pairs"], c * window)
            columns["prefill_kv_tokens"] = np.minimum(columns["prefill_kv_tokens"], c + window)
        columns[context_column(i)] = np.asarray(context, dtype=np.float64)
    return columns


def _fewest_steps(spec: ReplicaSpec, demand: Demand) -> float:
    """Decode steps that the whole demand needs at least: seats, and room for the contexts that no prefix is shared of."""
    decodes = float((demand.outputs - 1).sum())
    steps = decodes / spec.max_num_seqs
    if spec.model.windows == ((None, spec.model.n_layers),):
        private = demand.uncached + (demand.outputs - 1) / 2
        tokens = float(((demand.outputs - 1) * private).sum())
        steps = max(steps, tokens / (spec.kv_blocks * spec.block_size))
    return steps


def _weight_bytes(spec: ReplicaSpec) -> float:
    """Bytes of a step that decodes one token of context 1: the weights every step reads (of experts: one token's)."""
    one = StepWork(0, 0, 0, 0, 1, (1,), 1)._asdict()
    columns = {name: np.ones(1) * value for name, value in one.items() if name != "context_tokens"}
    columns |= {context_column(i): np.ones(1) for i in range(len(spec.model.windows))}
    return float(spec.cost_model.explain_many(columns)[2][0])


def _peak(spec: ReplicaSpec) -> float:
    """FLOP/s that no kernel of this model can exceed: the best of the formats it may compute in."""
    peaks = spec.gpu.peak_flops
    named = [peaks[d] for d in ("bf16", "fp16", spec.model.weight_dtype) if peaks.get(d)]
    return max(named or peaks.values())


def _miss(spec: ReplicaSpec, demand: Demand, slo: Slo) -> str | None:
    """The first latency limit that is missed by requests served alone, at the floor."""
    from ..report.metrics import distribution

    alone = {"ttft": _first_token_floor(spec, demand), "tpot": _token_floor(spec, demand)}
    alone["e2e"] = alone["ttft"] + np.nan_to_num(alone["tpot"]) * (demand.outputs - 1)
    for limit in slo.limits:
        floor = alone.get(limit.metric)
        if floor is None or limit.stat is None:
            continue
        best = distribution(floor)[limit.stat]
        if best is not None and best > limit.limit_s:
            return f"{limit.key} >= {best:.3g} s even on an idle replica"
    return None


def _first_token_floor(spec: ReplicaSpec, demand: Demand) -> Floats:
    """Seconds to compute each prompt alone, and its way in and out."""
    c, total = demand.uncached.astype(np.float64), demand.inputs.astype(np.float64)
    columns: dict[str, Any] = {
        "prefill_tokens": c,
        "prefill_seqs": np.ones(len(c)),
        "attention_pairs": np.zeros(len(c)),
        "prefill_kv_tokens": c,
        "n_decode": np.zeros(len(c)),
        "logits_rows": np.ones(len(c)),
    }
    for i in range(len(spec.model.windows)):
        columns[context_column(i)] = np.zeros(len(c))
    engine = spec.engine
    outside = engine.request_ingest_s + engine.request_ingest_per_token_s * total + engine.output_delay_s
    return outside + _floor(spec, columns)


def _token_floor(spec: ReplicaSpec, demand: Demand) -> Floats:
    """Seconds of a decode step of each request alone, just after its prompt; NaN for one token."""
    n = len(demand.inputs)
    columns: dict[str, Any] = {name: np.zeros(n) for name in
                               ("prefill_tokens", "prefill_seqs", "attention_pairs", "prefill_kv_tokens")}  # fmt: skip
    columns |= {"n_decode": np.ones(n), "logits_rows": np.ones(n)}
    for i, (window, _) in enumerate(spec.model.windows):
        context = demand.inputs + 1.0
        columns[context_column(i)] = context if window is None else np.minimum(context, window)
    return np.where(demand.outputs > 1, _floor(spec, columns), np.nan)


def _floor(spec: ReplicaSpec, columns: dict[str, Any]) -> Floats:
    _, flops, moved = spec.cost_model.explain_many(columns)
    floor: Floats = np.maximum(np.asarray(flops) / _peak(spec), np.asarray(moved) / spec.gpu.hbm_bytes_per_s)
    return floor
