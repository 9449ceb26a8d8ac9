"""Chat sessions from data: who follows whom is read from shared block ids."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError
from ..random_streams import stream
from ..trace import Ragged, Trace
from .fit_arrivals import fit_arrivals
from .laws import law
from .tables import equal_mass_edges, quantile_table, tidy, transported
from .workloads import WORKLOADS

Ints = NDArray[np.int64]
INPUT_BINS = 6  # bins of prompt lengths for chances
ROUNDS = 5  # times the table of first prompts is moved until generated prompts have the trace's lengths

CALIBRATION_ROWS = 50_000  # rows generated in each round: their own noise is then below 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Family:
    """Who follows whom: row i continues row `parent[i]` (−1: none) and shares `kept[i]` leading blocks with it.

    `turn[i]`: how many ancestors it has; `appends[i]`: it keeps all whole blocks of its parent.
    """

    parent: Ints
    kept: Ints
    turn: Ints
    appends: NDArray[np.bool_]


def family(trace: Trace, hash_ids: Ragged, system_blocks: int) -> Family:
    """The parent of each row: the latest row that shares its deepest known block beyond the system prompt."""
    last: dict[int, int] = {}
    parent: list[int] = []
    kept: list[int] = []
    turn: list[int] = []
    appends: list[bool] = []
    sizes = np.zeros(len(trace), dtype=np.int64) if trace.block_size is None else trace.block_size
    for i in range(len(trace)):
        ids = hash_ids.row(i) or ()
        shared = next((k for k, block in enumerate(ids) if block not in last), len(ids))
        found = last[ids[shared - 1]] if shared > system_blocks else -1
        parent.append(found)
        kept.append(shared)
        turn.append(turn[found] + 1 if found >= 0 else 0)
        appends.append(found >= 0 and shared >= int(trace.input_tokens[found]) // max(1, int(sizes[found])))
        last.update(dict.fromkeys(ids, i))
    return Family(np.array(parent), np.array(kept), np.array(turn), np.array(appends))


def system_prompt_blocks(hash_ids: Ragged) -> int:
    """Leading blocks that at least half of the rows have in common."""
    rows = [hash_ids.row(i) or () for i in range(len(hash_ids))]
    depth = 0
    while True:
        seen = Counter(row[depth] for row in rows if len(row) > depth)
        if not seen or seen.most_common(1)[0][1] < len(rows) / 2:
            return depth
        depth += 1


def fit_sessions(trace: Trace, *, window_s: float = 300.0) -> dict[str, Any]:
    """A `sessions` workload for a trace with block ids.

    A follow-up is seen only where it falls into the trace: one after a gap g counts span/(span − g) times. Apparent
    first prompts include follow-ups to what came before the trace; their table is therefore moved until prompts
    generated with warm-up have the lengths of the trace.
    Raises: ConfigError where the trace has no ids or nothing is reused.
    """
    if trace.hash_ids is None or trace.block_size is None:
        raise ConfigError(f"{trace.source}: got no hash_ids, expected them for a workload of sessions")
    systems = system_prompt_blocks(trace.hash_ids)
    links = family(trace, trace.hash_ids, systems)
    child = np.flatnonzero(links.parent >= 0)
    if len(child) < 50:
        raise ConfigError(f"{trace.source}: got {len(child)} rows that reuse blocks, expected at least 50")
    span_s = float(trace.arrival_s[-1])
    parent = links.parent[child]
    gaps = np.maximum(trace.arrival_s[child] - trace.arrival_s[parent], 1e-3)
    weight = span_s / np.maximum(span_s - gaps, 0.05 * span_s)
    first = links.turn == 0
    arrivals = fit_arrivals(trace.arrival_s[first], span_s, window_s=window_s)
    if arrivals["kind"] == "renewal":
        arrivals["rate_per_s"] = round(float(max(len(trace) - weight.sum(), 1.0)) / span_s, 5)
    inputs, outputs = trace.input_tokens, trace.output_tokens
    appended = child[links.appends[child]]
    branched = child[~links.appends[child]]
    spec = {
        "kind": "sessions",
        "arrivals": arrivals,
        "first_input": quantile_table(inputs[first], 0.005),
        "outputs": quantile_table(outputs[first], 0.005),
        "later_outputs": quantile_table(outputs[~first], 0.005),
        "continue_first": chances(inputs[first], *_followed(links, weight, child, first)),
        "continue_later": _later_chances(links, weight, child),
        "gap_s": weighted_table(gaps, weight),
        "append": chances(inputs[parent], links.appends[child].astype(float), np.ones(len(child))),
        "append_delta": quantile_table(_deltas(trace, links, appended), 0.01),
        **_branches(trace, trace.hash_ids, links, branched),
        "block_size": int(trace.block_size.max()),
        "systems": [{"blocks": systems, "weight": 1}] if systems else [],
        "max_input_tokens": int(inputs.max()),
        "warmup_s": round(float(gaps.max()) * 3),
    }
    return with_lengths_of(spec, inputs, span_s)


def with_lengths_of(
    spec: dict[str, Any], inputs: Ints, span_s: float, rounds: int = ROUNDS
) -> dict[str, Any]:
    """`spec` with first prompts moved until all prompts of `span_s` generated seconds are distributed as `inputs`.

    Each round generates traces of `CALIBRATION_ROWS` rows in all and applies the monotone map from their
    quantiles to those of `inputs` to the table of first prompts.
    """
    traces = int(np.clip(CALIBRATION_ROWS / len(inputs), 2, 30))
    for _ in range(rounds):
        made = np.concatenate([_generated_inputs(spec, span_s, seed) for seed in range(traces)])
        moved = transported(law(spec["first_input"]), made, inputs)
        spec = spec | {"first_input": quantile_table(np.rint(moved), 0.002)}
    return spec


def _generated_inputs(spec: dict[str, Any], span_s: float, seed: int) -> Ints:
    parts = []
    for block in WORKLOADS.build(spec, "workload").blocks(partial(stream, seed, "fit")):
        parts.append(block.input_tokens[block.arrival_s < span_s])
        if block.arrival_s[-1] >= span_s:
            break
    return np.concatenate(parts)


def _followed(links: Family, weight: Any, child: Ints, first: Any) -> tuple[Any, Any]:
    """For each first prompt: the weighted number of its follow-ups, and one (its own weight)."""
    followed = np.zeros(len(links.parent))
    np.add.at(followed, links.parent[child], weight)
    return np.minimum(followed[first], 1.0 + weight.mean()), np.ones(int(first.sum()))


def _later_chances(links: Family, weight: Any, child: Ints) -> list[float]:
    """Chance of a further turn after the second, and after any later one."""
    out = []
    for parents in (links.turn == 1, links.turn >= 2):
        followers = weight[parents[links.parent[child]]].sum()
        out.append(round(float(min(followers / max(1, parents.sum()), 0.95)), 4))
    return out


def chances(x: Any, hits: Any, weights: Any, bins: int = INPUT_BINS) -> list[list[float]]:
    """Steps of [upper bound, chance] over equal-mass bins of x: weighted mean of `hits`, at most 1."""
    edges = np.array(equal_mass_edges(x, bins))
    which = np.clip(np.searchsorted(edges, x, side="right") - 1, 0, len(edges) - 2)
    steps = []
    for i in range(len(edges) - 1):
        mask = which == i
        if mask.any():
            mean = float(np.sum(hits[mask]) / np.sum(weights[mask]))
            steps.append([tidy(edges[i + 1]), round(min(mean, 1.0), 4)])
    return steps


def weighted_table(values: Any, weights: Any) -> dict[str, Any]:
    """Table of weighted values: each is repeated in proportion to its weight (to a fifth of the smallest)."""
    times = np.rint(5 * weights / weights.min()).astype(np.int64)
    return quantile_table(np.repeat(values, times), 0.01, whole=False, digits=4)


def _deltas(trace: Trace, links: Family, rows: Ints) -> Any:
    """Tokens that appended prompts add to their parent's input and output."""
    up = links.parent[rows]
    return trace.input_tokens[rows] - trace.input_tokens[up] - trace.output_tokens[up]


def _branches(trace: Trace, hash_ids: Ragged, links: Family, rows: Ints) -> dict[str, Any]:
    """Laws of branched prompts; with fewer than 20 of them, a branch keeps half of the prompt at the same length."""
    if len(rows) < 20:
        return {"branch_ratio": 1.0, "branch_kept_frac": 0.5}
    up = links.parent[rows]
    blocks = np.diff(hash_ids.offsets)[up]
    return {
        "branch_ratio": quantile_table(
            trace.input_tokens[rows] / trace.input_tokens[up], 0.02, whole=False, digits=4
        ),
        "branch_kept_frac": quantile_table(links.kept[rows] / blocks, 0.02, whole=False, digits=4),
    }
