"""The whole loop on this machine: measure its CPU, fit, simulate on the constants just measured."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from stepline.traces.errors import ConfigError

TRACE = "".join(
    json.dumps({"timestamp": 400 * i, "input_length": 20 + 9 * i, "output_length": 5 + i}) + "\n"
    for i in range(12)
)

TINY = {
    "model_type": "llama", "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip


def calls(module, *arguments, cwd):
    code = f"import sys; from {module} import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Timings of this CPU, one thread, only the kernels that a dense model needs."""
    folder = tmp_path_factory.mktemp("loop")
    flags = (
        "--device",
        "cpu",
        "--backend",
        "numpy",
        "--size",
        "quick",
        "--threads",
        "1",
        "--budget-s",
        "120",
    )
    kernels = ("--kernels", "gemm,attention_prefill,attention_decode,copy,host", "--out", "t.parquet")
    calls("stepline.calibration.cli", "measure", *flags, *kernels, cwd=folder)
    calls(
        "stepline.calibration.cli",
        "fit",
        "--source",
        "t.parquet",
        "--no-residual",
        "--out",
        "c.json",
        cwd=folder,
    )
    return folder


def test_facts_say_what_was_measured(folder):
    facts = json.loads((folder / "t.machine.json").read_text())
    assert facts["threads"] == "1"
    assert facts["left_for_lack_of_time"] == 0
    assert 1e9 < facts["measured_peaks"]["bytes_per_s"] < 1e12
    assert 1e9 < facts["measured_peaks"]["flops_per_s"]["fp32"] < 1e13


def test_a_fit_of_this_cpu_knows_its_kernels(folder):
    fitted = json.loads((folder / "c.json").read_text())
    assert {"gemm", "attention_prefill", "attention_decode"} <= set(fitted["kernels"])
    assert (fitted["gpu"], fitted["dtype"]) == ("cpu", "fp32")


def test_a_simulation_runs_on_it_and_a_cpu_is_slower_than_a_gpu(folder):
    (folder / "trace.jsonl").write_text(TRACE)
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text(json.dumps(TINY))
    flags = ("--trace", "trace.jsonl", "--model", "tiny/config.json", "--no-save", "--json")
    runs = {}
    for name, more in {
        "cpu": ("--dtype", "fp32", "--gpu", "t.gpu.json", "--calibration", "c.json"),
        "cpu, by its constants alone": ("--calibration", "c.json"),
        "gpu": (),
    }.items():
        runs[name] = json.loads(calls("stepline.sim.cli.main", *flags, *more, cwd=folder).stdout)
    for run in runs.values():
        assert run["requests"]["completed"] == 12
    assert runs["cpu"]["tpot_s"]["p50"] > 20 * runs["gpu"]["tpot_s"]["p50"]
    assert runs["cpu, by its constants alone"]["tpot_s"]["p50"] > 10 * runs["gpu"]["tpot_s"]["p50"]
    words = calls("stepline.sim.cli.main", *flags[:-1], "--calibration", "c.json", cwd=folder).stdout
    assert "on cpu, TP 1" in words


def test_constants_of_one_device_are_refused_on_another(folder, capsys):
    from stepline.sim.cli.main import main

    trace, constants = str(folder / "trace.jsonl"), str(folder / "c.json")
    (folder / "trace.jsonl").write_text(TRACE)
    assert main(["--trace", trace, "--gpu", "h200", "--calibration", constants, "--no-save"]) == 2
    assert "holds constants of cpu, --gpu is h200" in capsys.readouterr().err


def test_threads_cannot_be_set_once_numpy_is_loaded():
    import numpy as np
    from stepline.calibration.measure.cli import use_threads

    assert np
    with pytest.raises(ConfigError, match="NumPy is loaded already"):
        use_threads(1, "cpu")
    with pytest.raises(ConfigError, match="with --device cpu"):
        use_threads(1, "cuda:0")
