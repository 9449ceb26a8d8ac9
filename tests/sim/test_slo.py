"""Objectives: reading them, counting good requests, judging a run."""

from __future__ import annotations

import numpy as np
import pytest
from stepline.sim.report.slo import MLPERF, parse_slo
from stepline.traces.errors import ConfigError


def test_limits_attainment_and_units():
    slo = parse_slo("ttft_p99<0.5, tpot_p99<=50ms,attainment>99%")
    assert [(x.key, x.limit_s) for x in slo.limits] == [("ttft_p99", 0.5), ("tpot_p99", 0.05)]
    assert slo.attainment_frac == pytest.approx(0.99)


def test_a_request_is_good_when_every_limit_holds_and_one_token_has_no_tpot():
    slo = parse_slo("ttft_p99<1,tpot_p99<0.1")
    seconds = {"ttft": np.array([0.5, 1.5, 0.9]), "tpot": np.array([0.2, 0.05, np.nan]), "e2e": np.ones(3)}
    assert slo.good(seconds).tolist() == [False, False, True]


def test_judging_names_the_limit_that_fails():
    slo = parse_slo("ttft_p99<1,e2e_mean<9,attainment>0.5")
    summary = {"ttft_s": {"p99": 1.2}, "e2e_s": {"mean": 3.0}}
    judged = slo.judge(summary, good=6, submitted=10)
    assert [(t["limit"], t["met"]) for t in judged["limits"]] == [("ttft_p99", False), ("e2e_mean", True)]
    assert (judged["attainment_frac"], judged["met"]) == (0.6, False)


def test_a_limit_without_a_statistic_binds_every_request():
    slo = parse_slo("ttft<1")
    assert slo.judge({}, good=10, submitted=10)["met"]
    assert not slo.judge({}, good=9, submitted=10)["met"]


def test_every_mlperf_preset_parses():
    for name in MLPERF:
        assert parse_slo(f"mlperf:{name}").limits


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ttft_p99>0.5", "expected ttft<SECONDS"),
        ("ttfd_p99<0.5", "did you mean 'ttft'"),
        ("ttft_p42<0.5", "unknown statistic 'p42'"),
        ("ttft_p99<fast", "expected METRIC_STAT<SECONDS"),
        ("ttft_p99<-1", "seconds > 0"),
        ("itl<0.1", "give a statistic"),
        ("attainment>1.5", "fraction in 0..1"),
        ("attainment>0.9", "at least one latency limit"),
        ("mlperf:llama2-70b-interactiv", "did you mean 'llama2-70b-interactive'"),
        ("", "at least one latency limit"),
    ],
)
def test_wrong_objectives_are_one_line(text, says):
    with pytest.raises(ConfigError, match=says) as caught:
        parse_slo(text)
    assert str(caught.value).startswith("--slo")
    assert "\n" not in str(caught.value)
