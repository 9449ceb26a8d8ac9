"""Statistical oracles of clusters: Erlang C, join-the-shortest-queue, power of two choices."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.sparse import coo_array
from scipy.sparse.linalg import spsolve
from stepline.policies.routing.central_queue import CentralQueuePolicy
from stepline.policies.routing.least_requests import LeastRequestsPolicy
from stepline.policies.routing.random_choice import PowerOfTwoPolicy, RandomPolicy
from stepline.sim.cluster.cluster import run_cluster
from stepline.traces.trace import Trace

from .engine_kit import Affine, by_index, spec

REQUESTS = 20_000
GRAIN = 10_000  # prompt tokens of the mean request: service times come in steps of 1e-4 of the mean


def mean_wait_s(seed: int, servers: int, load: float, routing) -> float:
    """Mean time in queue of exponential requests of mean 1 s at `servers` one-seat replicas; first tenth left out."""
    rng = np.random.default_rng(seed)
    tokens = np.ceil(rng.exponential(GRAIN, REQUESTS)).astype(np.int64)
    arrivals = np.cumsum(rng.exponential(1 / (load * servers), REQUESTS))
    requests = Trace(arrivals, tokens, np.ones(REQUESTS, dtype=np.int64))
    limits = {"max_num_seqs": 1, "max_num_batched_tokens": 10**9, "n_replicas": servers, "routing": routing}
    got = by_index(run_cluster(requests, spec(Affine(0.0, 1 / GRAIN), **limits)))
    return float((got["scheduled_s"] - got["arrival_s"]).iloc[REQUESTS // 10 :].mean())


def check(theory_s: float, waits: list[float]) -> None:
    """|mean - theory| <= 4 standard errors, and the standard error is at most 2 % of the theory."""
    error = float(np.std(waits, ddof=1) / np.sqrt(len(waits)))
    assert error <= 0.02 * theory_s
    assert abs(np.mean(waits) - theory_s) <= 4 * error


def erlang_c_wait_s(servers: int, load: float) -> float:
    """Mean wait of M/M/c with service mean 1."""
    offered = servers * load
    rest = sum(offered**k / math.factorial(k) for k in range(servers))
    tail = offered**servers / math.factorial(servers) / (1 - load)
    return tail / (rest + tail) / (servers * (1 - load))


def choices_wait_s(servers: int, load: float, choices: int, most: int) -> float:
    """Mean wait where each request joins the shortest of `choices` random queues: the Markov chain, solved.

    States are sorted queue lengths (those in service count) up to `most`; Little's law gives the mean time.
    """
    states = list(itertools.combinations_with_replacement(range(most + 1), servers))
    number = {s: i for i, s in enumerate(states)}
    rows, columns, rates = [], [], []

    def flow(start, changed, rate):
        i, j = number[start], number[tuple(sorted(changed))]
        rows.extend((j, i))
        columns.extend((i, i))
        rates.extend((rate, -rate))

    for s in states:
        for drawn in itertools.combinations(range(servers), choices):
            shortest = drawn[0]  # sorted: the first drawn is the shortest
            if s[shortest] < most:
                up = (*s[:shortest], s[shortest] + 1, *s[shortest + 1 :])
                flow(s, up, load * servers / math.comb(servers, choices))
        for i, n in enumerate(s):
            if n:
                flow(s, (*s[:i], n - 1, *s[i + 1 :]), 1.0)
    n = len(states)
    balance = coo_array((rates, (rows, columns)), shape=(n, n)).tolil()
    balance[0, :] = 1.0
    right = np.zeros(n)
    right[0] = 1.0
    p = spsolve(balance.tocsc(), right)
    assert p[number[(most,) * servers]] < 1e-9
    in_system = sum(sum(s) * q for s, q in zip(states, p, strict=True))
    return in_system / (load * servers) - 1.0


def test_the_chain_of_one_server_is_m_m_1():
    assert choices_wait_s(1, 0.5, 1, 60) == pytest.approx(erlang_c_wait_s(1, 0.5))


@pytest.mark.slow
@pytest.mark.parametrize(("servers", "load"), [(2, 0.7), (5, 0.7)])
def test_a_central_queue_waits_as_erlang_c(servers, load):
    waits = [mean_wait_s(seed, servers, load, CentralQueuePolicy(slots=1)) for seed in range(40)]
    check(erlang_c_wait_s(servers, load), waits)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "choices"), [(LeastRequestsPolicy(), 3), (PowerOfTwoPolicy(), 2)])
def test_the_shorter_queue_waits_as_its_markov_chain(policy, choices):
    waits = [mean_wait_s(100 + seed, 3, 0.65, policy) for seed in range(40)]
    check(choices_wait_s(3, 0.65, choices, 40 if choices == 2 else 30), waits)


@pytest.mark.slow
def test_random_routing_waits_as_m_m_1():
    waits = [mean_wait_s(200 + seed, 4, 0.5, RandomPolicy(seed=seed)) for seed in range(40)]
    check(erlang_c_wait_s(1, 0.5), waits)
