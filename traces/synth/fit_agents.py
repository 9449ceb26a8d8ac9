"""Agentic sessions from data: rows with `session_id` and `delay`, block ids where the trace has them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..trace import Ragged, Trace
from .laws import normal_ppf
from .tables import quantile_table, tidy

FEWEST, FEW = (
    50,
    200,
)  # fewer values give a table of `COARSE`, of `EVEN` knots: their shape, not the values themselves
COARSE = (0, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 1)
FINE = (0, 0.005, 0.025, 0.05, *(round(0.1 * k, 1) for k in range(1, 10)), 0.95, 0.975, 0.99, 0.998, 1)
EVEN = (0, 0.02, *(round(0.05 * k, 2) for k in range(1, 20)), 0.98, 1)
GROWTH_SHARES = (
    0.05,
    0.12,
    0.25,
    0.4,
    0.55,
    0.7,
    0.85,
    0.95,
)  # of steps, by context: short contexts grow fastest,
CHANCE_SHARES = (0.25, 0.5, 0.75, 0.9, 0.97)  # since the agent reads the repository
LEAST_STEPS = 50  # in a range of contexts with a table of its own
LEAST_SESSIONS = 5
LEAST_EARLY = 10  # prompts before their time, for a law of how early
LEAST_BREAKS = 10  # fewer breaks give no table of what is kept: all is lost then
BROKEN = 0.9  # share of the last prompt's blocks: what keeps more lost no more than its last answer
COMPACTION = -2_000  # a prompt that shrinks by more tokens than this was compacted


def fit_agents(trace: Trace) -> dict[str, Any]:
    """An `agents` workload for a trace of sessions with think times.

    Raises: ConfigError where the trace has no sessions, no delays, or fewer than `LEAST_SESSIONS` sessions.
    """
    sessions = _sessions(trace)
    rows = np.concatenate(sessions)
    steps = [pair for session in sessions for pair in pairwise(session)]
    last, following = (np.array(side, dtype=np.int64) for side in zip(*steps, strict=True))
    context = trace.input_tokens[last]
    growth = trace.input_tokens[following] - context
    cut = growth < COMPACTION
    if cut.all():
        raise ConfigError(
            f"{trace.source}: got no prompt longer than the one before, expected contexts that grow"
        )
    delays = [trace.columns["delay_s"][i] for i in following.tolist()]
    turns, first = [len(session) for session in sessions], [session[0] for session in sessions]
    owner = np.repeat(np.arange(len(sessions)), np.array(turns) - 1)
    bent = {
        "growth": growth,
        "outputs": trace.output_tokens[following],
        "think_s": [d or 0.0 for d in delays],
    }
    scores = {name: normal_scores(values) for name, values in bent.items()}
    return {
        "kind": "agents",
        **_starts(trace.arrival_s, sessions),
        "turns": smooth(turns),
        "first_input": smooth(trace.input_tokens[first]),
        "growth": _tables(context[~cut], growth[~cut], GROWTH_SHARES),
        "inputs": quantile_table(trace.input_tokens[rows], 0.003),
        "outputs": quantile_table(trace.output_tokens[rows], 0.005),
        "think_s": quantile_table([d for d in delays if d is not None], 0.005, whole=False, digits=4),
        "session_frac": {name: _own_share(owner, values) for name, values in scores.items()},
        "correlation": _correlation(turns, trace.input_tokens[first], owner, scores),
        **_breaks(trace, last, following, cut),
        "compact_chance": _chances(context, cut),
        "compact_frac": smooth(trace.input_tokens[following][cut] / context[cut]) if cut.any() else 0.5,
        "max_input_tokens": int(trace.input_tokens.max()),
        **_pace(
            trace.arrival_s[following] - trace.arrival_s[last], bent["think_s"], trace.output_tokens[last]
        ),
    }


def _pace(gap_s: Any, think_s: Any, output_tokens: Any) -> dict[str, Any]:
    """Time to answer by least squares, and how often the next prompt came before the answer and the pause were over."""
    answer_s = gap_s - np.asarray(think_s)
    late = (answer_s >= 0) & (answer_s <= np.quantile(answer_s, 0.99))
    rows = np.stack([np.ones(len(gap_s)), output_tokens], axis=1)
    base_s, per_token_s = np.maximum(np.linalg.lstsq(rows[late], answer_s[late], rcond=None)[0], 0.0).tolist()
    early = answer_s < 0
    service = {"base_s": float(f"{base_s:.3g}"), "per_output_token_s": float(f"{per_token_s:.3g}")}
    if early.sum() < LEAST_EARLY:
        return {"service": service}
    think_s = np.asarray(think_s)
    return {
        "service": service,
        "early_chance": _chances(think_s, early),
        "early_gap_s": _tables(think_s[early], gap_s[early], CHANCE_SHARES),
    }


def _starts(arrival_s: Any, sessions: list[list[int]]) -> dict[str, Any]:
    """When sessions start, how many there are, and how long they last."""
    starts = np.sort(arrival_s[[rows[0] for rows in sessions]])
    spans_s = [float(arrival_s[rows[-1]] - arrival_s[rows[0]]) for rows in sessions]
    rate_per_s = (len(starts) - 1) / max(float(starts[-1] - starts[0]), 1e-3)
    return {
        "arrivals": {"kind": "renewal", "rate_per_s": float(f"{rate_per_s:.4g}")},
        "sessions": len(sessions),
        "session_s": smooth(spans_s),
        "max_session_s": float(f"{max(*spans_s, 1e-3):.2g}"),
    }


def smooth(values: Any) -> dict[str, Any]:
    """A table of quantiles to 3 digits: coarse from few values, finer from more."""
    knots = COARSE if len(values) < FEWEST else EVEN if len(values) < FEW else FINE
    return {
        "kind": "quantiles",
        "p": list(knots),
        "q": [tidy(float(f"{q:.3g}")) for q in np.quantile(values, knots)],
    }


def _sessions(trace: Trace) -> list[list[int]]:
    """Row numbers of each session, in order."""
    names, delays = trace.columns.get("session_id"), trace.columns.get("delay_s")
    if names is None or delays is None:
        raise ConfigError(
            f"{trace.source}: got no session_id and delay, expected both for a workload of agents"
        )
    found: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name is not None:
            found.setdefault(name, []).append(i)
    long = sum(len(rows) > 1 for rows in found.values())
    if long < LEAST_SESSIONS:
        raise ConfigError(
            f"{trace.source}: got {long} sessions of two or more turns, expected at least {LEAST_SESSIONS}"
        )
    return list(found.values())


def _tables(x: Any, y: Any, shares: tuple[float, ...]) -> Any:
    """Tables of y, one for each range of x."""
    return [[high, smooth(y[rows])] for high, rows in _ranges(x, shares)]


def _ranges(x: Any, shares: tuple[float, ...]) -> Iterator[tuple[float, Any]]:
    """(upper bound, rows) of ranges of x that hold these shares of them, each at least `LEAST_STEPS`."""
    low = 0.0
    for high in (*(float(f"{q:.3g}") for q in np.unique(np.quantile(x, shares))), 1e9):
        rows = (x >= low) & (x < high)
        if high == 1e9 or min(rows.sum(), np.sum(x >= high)) >= LEAST_STEPS:
            yield high, rows
            low = high


def normal_scores(values: Any) -> Any:
    """Standard normal quantiles at the ranks of `values` (ties share a rank)."""
    from scipy.stats import rankdata

    return normal_ppf((rankdata(values) - 0.5) / len(values))


def _own_share(owner: Any, scores: Any) -> float:
    """Share of the variance of normal scores that lies between their owners (one-way analysis of variance)."""
    sizes = np.bincount(owner)
    sums = np.bincount(owner, scores)
    used = sizes > 0
    means = sums[used] / sizes[used]
    within = np.sum(scores**2) - np.sum(sizes[used] * means**2)
    within /= max(1, len(scores) - used.sum())
    usual = (len(scores) - np.sum(sizes**2) / len(scores)) / max(1, used.sum() - 1)
    between = np.sum(sizes[used] * (means - scores.mean()) ** 2) / max(1, used.sum() - 1)
    share = (between - within) / usual
    return round(float(np.clip(share / (share + within), 0.0, 0.9)), 3) if share > 0 else 0.0


def _correlation(turns: Any, first: Any, owner: Any, scores: dict[str, Any]) -> list[list[float]]:
    """How turns, first prompt and mean scores of sessions hang together, shrunk to none where sessions are few."""
    sizes = np.maximum(np.bincount(owner, minlength=len(turns)), 1)
    means = [np.bincount(owner, values, minlength=len(turns)) / sizes for values in scores.values()]
    columns = [normal_scores(column) for column in (turns, first, *means)]
    spread = np.array([max(float(np.std(column)), 1e-9) for column in columns])
    found = np.cov(columns, bias=True) / np.outer(spread, spread)
    found *= len(turns) / (len(turns) + len(columns))
    np.fill_diagonal(found, 1.0)
    return [[round(float(value), 2) for value in row] for row in found]


def _breaks(trace: Trace, last: Any, following: Any, cut: Any) -> dict[str, Any]:
    """Chance that a prompt's known prefix is shorter than `BROKEN` of the last prompt, and how long it is then.

    Known is what any earlier row held: a session that returns to an older branch of itself loses nothing.
    """
    if trace.hash_ids is None or trace.block_size is None:
        return {}
    size = int(trace.block_size.max())
    known = _known_blocks(trace.hash_ids)[following]
    broken = known < BROKEN * (trace.input_tokens[last] // size)
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


def _chances(x: Any, hits: Any) -> Any:
    """Chances in steps of [upper bound of x, chance]."""
    return [[high, round(float(hits[rows].mean()), 4)] for high, rows in _ranges(x, CHANCE_SHARES)]
