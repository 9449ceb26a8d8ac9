"""Shipped samples are what their profiles generate, byte for byte, and what the reader reads back."""

import hashlib
import json

import numpy as np
import pytest
from stepline.traces import read_trace
from stepline.traces.errors import ConfigError
from stepline.traces.synth.samples import SAMPLES, SAMPLES_DIR, sample_trace, write_samples


@pytest.fixture(scope="module")
def regenerated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("samples")
    write_samples(folder)
    return folder


@pytest.mark.parametrize("name", SAMPLES)
def test_regenerating_a_sample_gives_the_shipped_bytes(name, regenerated):
    for file in (f"{name}.jsonl", f"{name}.meta.json"):
        assert (SAMPLES_DIR / file).read_bytes() == (regenerated / file).read_bytes()


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_small_and_its_sidecar_speaks_of_it(name):
    path = SAMPLES_DIR / f"{name}.jsonl"
    sidecar = json.loads(path.with_suffix(".meta.json").read_text())
    content = path.read_bytes()
    assert len(content) <= 250_000
    assert sidecar["seed"] == SAMPLES[name].seed
    assert sidecar["rows"] == content.count(b"\n")
    assert sidecar["sha256"] == hashlib.sha256(content).hexdigest()
    assert sidecar["generator"]["profile"] == SAMPLES[name].profile


@pytest.mark.parametrize("name", SAMPLES)
def test_reading_a_sample_gives_the_generated_trace(name):
    read, made = read_trace(SAMPLES_DIR / f"{name}.jsonl"), sample_trace(name)
    np.testing.assert_array_equal(read.arrival_s, made.arrival_s)
    np.testing.assert_array_equal(read.input_tokens, made.input_tokens)
    np.testing.assert_array_equal(read.output_tokens, made.output_tokens)
    for column in ("session_id", "turn", "delay_s"):
        absent = [None] * len(made)
        assert list(read.columns.get(column, absent)) == list(made.columns.get(column, absent))
    if made.hash_ids is None:
        assert read.hash_ids is None
    else:
        np.testing.assert_array_equal(read.hash_ids.values, made.hash_ids.values)
        np.testing.assert_array_equal(read.hash_ids.offsets, made.hash_ids.offsets)
        np.testing.assert_array_equal(read.block_size, made.block_size)
    assert read.warnings == ()


def test_an_unknown_sample_names_the_nearest_one():
    with pytest.raises(ConfigError, match="did you mean 'chat'"):
        sample_trace("chatt")
