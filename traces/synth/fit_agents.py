"""Agentic sessions from data: rows with `session_id` and `delay`, block ids where the trace has them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..trace import Ragged, Trace
from .tables import quantile_table, tidy

FEW = 200  # fewer values than this give a table of `COARSE` knots: their shape, not the values themselves
COARSE = (0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1)
FINE = (0, 0.005, 0.025, 0.05, *(round(0.1 * k, 1) for k in range(1, 10)), 0.95, 0.975, 0.99, 0.998, 1)
GROWTH_BOUNDS = (20_000, 40_000, 80_000)  # short contexts grow fastest: the agent reads the repository
LEAST_SESSIONS = 5
LEAST_BREAKS = 10  # fewer breaks give no table of what is kept: all is lost then
COMPACTION = -2_000  # a prompt that shrinks by more tokens than this was compacted


def fit_agents(trace: Trace) -> dict[str, Any]:
    """An `agents` workload for a trace of sessions with think times.

    Raises: ConfigError where the trace has no sessions, no delays, or fewer than `LEAST_SESSIONS` sessions.
    """
    sessions = _sessions(trace)
    steps = [(a, b) for rows in sessions for a, b in pairwise(rows)]
    last, following = (np.array(side, dtype=np.int64) for side in zip(*steps, strict=True))
    context = trace.input_tokens[last]
    growth = trace.input_tokens[following] - context
    cut = growth < COMPACTION
    starts = np.sort(trace.arrival_s[[rows[0] for rows in sessions]])
    spans = [float(trace.arrival_s[rows[-1]] - trace.arrival_s[rows[0]]) for rows in sessions]
    delays = [trace.columns["delay_s"][i] for i in following.tolist()]
    return {
        "kind": "agents",
        "arrivals": {
            "kind": "renewal",
            "rate_per_s": float(f"{(len(starts) - 1) / (starts[-1] - starts[0]):.4g}"),
        },
        "sessions": len(sessions),
        "turns": smooth([len(rows) for rows in sessions]),
        "first_input": smooth(trace.input_tokens[[rows[0] for rows in sessions]]),
        "growth": _growth(context[~cut], growth[~cut]),
        "outputs": quantile_table(trace.output_tokens, 0.005),
        "think_s": quantile_table([d for d in delays if d is not None], 0.005, whole=False, digits=4),
        "session_frac": {
            "growth": _own_share(last, growth, sessions),
            "outputs": _own_share(last, trace.output_tokens[following], sessions),
            "think_s": _own_share(last, np.array([d or 0.0 for d in delays]), sessions),
        },
        **_breaks(trace, last, following, cut),
        "compact_chance": _compactions(context, cut),
        "compact_frac": smooth(trace.input_tokens[following][cut] / context[cut]) if cut.any() else 0.5,
        "max_input_tokens": int(trace.input_tokens.max()),
        "max_session_s": float(f"{max(spans):.2g}"),
    }


def smooth(values: Any) -> dict[str, Any]:
    """A table of quantiles to 3 digits: coarse from few values, finer from more."""
    knots = COARSE if len(values) < FEW else FINE
    return {
        "kind": "quantiles",
        "p": list(knots),
        "q": [tidy(float(f"{q:.3g}")) for q in np.quantile(values, knots)],
    }


def _sessions(trace: Trace) -> list[list[int]]:
    """Row numbers of each session with at least two turns, in order."""
    names, delays = trace.columns.get("session_id"), trace.columns.get("delay_s")
    if names is None or delays is None:
        raise ConfigError(
            f"{trace.source}: got no session_id and delay, expected both for a workload of agents"
        )
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name is not None:
            found.setdefault(name, []).append(i)
    sessions = [rows for rows in found.values() if len(rows) > 1]
    if len(sessions) < LEAST_SESSIONS:
        raise ConfigError(
            f"{trace.source}: got {len(sessions)} sessions of two or more turns, expected at least {LEAST_SESSIONS}"
        )
    return sessions


def _growth(context: Any, growth: Any) -> Any:
    """One table of growth, or one for each range of contexts that holds at least 50 steps."""
    bounds = [b for b in GROWTH_BOUNDS if 50 <= np.sum(context < b) <= len(context) - 50]
    ranges = [(low, high) for low, high in pairwise((0, *bounds, 1e9))]
    return [[high, smooth(growth[(context >= low) & (context < high)])] for low, high in ranges]


def _own_share(last: Any, values: Any, sessions: list[list[int]]) -> float:
    """Share of the variance of normal scores that lies between sessions (one-way analysis of variance)."""
    from scipy.special import ndtri
    from scipy.stats import rankdata

    scores = ndtri((rankdata(values) - 0.5) / len(values))
    owner = {row: k for k, rows in enumerate(sessions) for row in rows}
    group = np.array([owner[i] for i in last.tolist()])
    sizes = np.bincount(group, minlength=len(sessions))
    sums = np.bincount(group, scores, minlength=len(sessions))
    used = sizes > 0
    means = sums[used] / sizes[used]
    within = np.sum(scores**2) - np.sum(sizes[used] * means**2)
    within /= max(1, len(scores) - used.sum())
    usual = (len(scores) - np.sum(sizes**2) / len(scores)) / max(1, used.sum() - 1)
    between = np.sum(sizes[used] * (means - scores.mean()) ** 2) / max(1, used.sum() - 1)
    share = (between - within) / usual
    return round(float(np.clip(share / (share + within), 0.0, 0.9)), 3) if share > 0 else 0.0


def _breaks(trace: Trace, last: Any, following: Any, cut: Any) -> dict[str, Any]:
    """Chance that a prompt's known prefix is shorter than the whole blocks of the last prompt, and how long it is then.

    Known is what any earlier row held: a session that returns to an older branch of itself loses nothing.
    """
    if trace.hash_ids is None or trace.block_size is None:
        return {}
    size = int(trace.block_size.max())
    known = _known_blocks(trace.hash_ids)[following]
    broken = known < trace.input_tokens[last] // size
    table = {"break_kept_blocks": smooth(known[broken])} if broken.sum() >= LEAST_BREAKS else {}
    return {"break_chance": round(float(np.mean(broken & ~cut)), 4), **table, "block_size": size}


def _known_blocks(hash_ids: Ragged) -> Any:
    """Leading blocks of each row that an earlier row held."""
    seen: set[int] = set()
    known = []
    for i in range(len(hash_ids)):
        ids = hash_ids.row(i) or ()
        known.append(next((k for k, block in enumerate(ids) if block not in seen), len(ids)))
        seen.update(ids)
    return np.array(known)


def _compactions(context: Any, cut: Any) -> Any:
    """Chance of compaction below and above the median context of compacted prompts.

    Prompts that would pass the maximum are compacted anyway; the upper chance is halved for them.
    """
    if cut.sum() < 4:
        return round(float(cut.mean()), 4)
    border = float(f"{np.median(context[cut]):.2g}")
    low, high = cut[context < border], cut[context >= border]
    return [[border, round(float(low.mean()), 4)], [1e9, round(float(high.mean()) / 2, 4)]]
