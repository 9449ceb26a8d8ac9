"""Shipped samples are what their profiles generate, byte for byte, and what the reader reads back."""

import json

import numpy as np
import pytest
from stepline.traces.errors import ConfigError
from stepline.traces.synth.samples import SAMPLES, SAMPLES_DIR, sample_files, sample_trace


@pytest.mark.parametrize("name", SAMPLES)
def test_regenerating_a_sample_gives_the_shipped_bytes(name):
    for file, content in sample_files(name).items():
        assert (SAMPLES_DIR / file).read_bytes() == content


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_small_and_carries_its_sidecar(name):
    path = SAMPLES_DIR / f"{name}.jsonl"
    sidecar = json.loads(path.with_suffix(".meta.json").read_text())
    assert path.stat().st_size <= 250_000
    assert sidecar["seed"] == SAMPLES[name].seed
    assert sidecar["rows"] == path.read_text().count("\n")


@pytest.mark.parametrize("name", SAMPLES)
def test_reading_a_sample_gives_the_generated_trace(name):
    reading = pytest.importorskip("stepline.traces.reading")
    read, made = reading.read_trace(SAMPLES_DIR / f"{name}.jsonl"), sample_trace(name)
    np.testing.assert_array_equal(read.arrival_s, made.arrival_s)
    np.testing.assert_array_equal(read.input_tokens, made.input_tokens)
    np.testing.assert_array_equal(read.output_tokens, made.output_tokens)
    for i in range(0, len(made), 97):
        assert read[i].hash_ids == made[i].hash_ids
        assert (read[i].session_id, read[i].turn, read[i].delay_s) == (
            made[i].session_id,
            made[i].turn,
            made[i].delay_s,
        )
    assert read.warnings == ()


def test_an_unknown_sample_names_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'chat'"):
        sample_trace("chatt")
