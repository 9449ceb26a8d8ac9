"""The load of a run: its clock and its rate as the configuration asks."""

from __future__ import annotations

import numpy as np
import pytest
from stepline.sim.cli.main import main
from stepline.sim.study.config import RunConfig
from stepline.sim.study.load import load, shaped
from stepline.traces.errors import ConfigError
from stepline.traces.trace import Trace


def ticking(n: int = 400) -> Trace:
    """`n` requests on a clock of 3 s, ten a tick."""
    return Trace(
        np.repeat(np.arange(n // 10) * 3.0, 10), np.full(n, 32), np.full(n, 4), sha256="x", source="made"
    )


def test_an_unchanged_load_is_the_trace_itself():
    trace = ticking()
    assert shaped(trace, RunConfig()) is trace


def test_other_rates_keep_the_provenance():
    thin = shaped(ticking(4000), RunConfig(rate_scale=0.5, seed=1))
    assert len(thin) == pytest.approx(2000, abs=4 * np.sqrt(1000))
    assert (thin.sha256, thin.source) == ("x", "made")
    assert shaped(ticking(), RunConfig(rate_scale=2.0, rate_scale_mode="compress")).arrival_s[-1] == 58.5


def test_a_coarse_clock_is_spread_before_the_rate_changes():
    spread = shaped(ticking(), RunConfig(spread_quantum=True, seed=1))
    assert len(np.unique(spread.arrival_s)) == 400
    assert (np.floor(spread.arrival_s / 3.0) == np.repeat(np.arange(40), 10)).all()


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="--trace: no file"):
        load(tmp_path / "none.jsonl", RunConfig())


ROWS = "".join(f'{{"timestamp":{10 * i},"input_length":40,"output_length":4}}\n' for i in range(40))


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--max-concurrency", "2"], "max_concurrency", 2),
        (["--rate-scale", "2", "--rate-scale-mode", "compress"], "rate_scale_mode", "compress"),
        (["--client-timeout", "9"], "client_timeout", 9.0),
    ],
)
def test_flags_of_the_load_reach_the_run(tmp_path, capsys, flags, field, value):
    import json

    path = tmp_path / "t.jsonl"
    path.write_text(ROWS)
    out = tmp_path / "out"
    assert main(["--trace", str(path), "--quiet", "--out", str(out), *flags]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert field in str(manifest)
    assert manifest["config"][field] == value
