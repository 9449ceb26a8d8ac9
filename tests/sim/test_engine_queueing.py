"""Statistical oracles: mean waits of M/D/1 and M/G/1 queues, which one seat and constant steps are."""

from __future__ import annotations

import numpy as np
import pytest

from .engine_kit import Affine, by_index, run

REPLICATIONS = 40
REQUESTS = 20_000


def mean_wait_s(seed: int, load: float, outputs) -> float:
    """Mean time in queue of one run, its first tenth left out."""
    rng = np.random.default_rng(seed)
    lengths = outputs(rng)
    arrivals = np.cumsum(rng.exponential(lengths.mean() / load, REQUESTS))
    rows = list(zip(arrivals, np.ones(REQUESTS, dtype=int), lengths, strict=True))
    got = by_index(run(rows, Affine(1.0), max_num_seqs=1))
    return float((got["scheduled_s"] - got["arrival_s"]).iloc[REQUESTS // 10 :].mean())


def check(theory_s: float, waits: list[float]) -> None:
    """|mean - theory| <= 4 standard errors, and the standard error is at most 2 % of the theory."""
    error = float(np.std(waits, ddof=1) / np.sqrt(len(waits)))
    assert error <= 0.02 * theory_s
    assert abs(np.mean(waits) - theory_s) <= 4 * error


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.5, 0.8])
def test_constant_service_waits_as_m_d_1(load):
    waits = [mean_wait_s(seed, load, lambda _: np.ones(REQUESTS, dtype=int)) for seed in range(REPLICATIONS)]
    check(load / (2 * (1 - load)), waits)


@pytest.mark.slow
def test_mixed_service_waits_as_m_g_1():
    # outputs of 1 or 9 tokens, one second each: E[S] = 3, E[S^2] = 21; Pollaczek-Khinchine
    load, mean, square = 0.6, 3.0, 21.0

    def outputs(rng):
        lengths = np.ones(REQUESTS, dtype=int)
        lengths[rng.permutation(REQUESTS)[: REQUESTS // 4]] = 9
        return lengths

    waits = [mean_wait_s(seed, load, outputs) for seed in range(REPLICATIONS)]
    check(load / mean * square / (2 * (1 - load)), waits)
