"""KV blocks against measured start-ups, and the committed constants against a new fit to them."""

import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from stepline.calibration.memory_fit import StartUp, errors, fit, main, predict, read_runs, read_table
from stepline.sim.cost.catalogue import load_model
from stepline.sim.cost.memory_constants import memory_constants
from stepline.traces.errors import CalibrationError

MEASURED = Path(__file__).resolve().parents[3] / "shared" / "measured"
needs_data = pytest.mark.skipif(
    not (MEASURED / "kv_ledger.csv").exists(), reason="measured start-ups are not on this machine"
)


def start(name, tp, blocks=1, tokens=2048):
    return StartUp(
        model=load_model(name),
        version="vllm-0.15.1",
        gpu="h100-sxm",
        tp=tp,
        pp=1,
        utilization=0.9,
        tokens=tokens,
        seqs=128,
        kv_dtype="bf16",
        weight_dtype=None,
        blocks=blocks,
    )


# Blocks that vLLM 0.15.1 reported on H100 SXM (80 GB) at 0.9, 128 sequences (measured runs of the inference-sim project).
REPORTED = [
    ("llama-2-7b", 1, 2048, 7463),
    ("codellama-34b", 2, 2048, 26603),
    ("llama-2-70b", 4, 2048, 31357),
    ("llama-3.1-70b", 4, 8192, 30251),
    ("mixtral-8x7b", 2, 2048, 27511),
    ("mistral-nemo-12b", 1, 2048, 19251),
    ("mistral-nemo-12b", 2, 2048, 48009),
    ("qwen2.5-7b", 1, 2048, 65352),
    ("llama-4-scout-fp8", 2, 2048, 8253),
]


@pytest.mark.parametrize(("name", "tp", "tokens", "blocks"), REPORTED)
def test_blocks_of_reported_runs(name, tp, tokens, blocks):
    books = predict(start(name, tp, tokens=tokens), memory_constants("vllm-0.15.1"))
    assert books.n_blocks == pytest.approx(blocks, rel=0.005)


@needs_data
def test_blocks_against_the_table_of_start_ups():
    table = errors(read_table(MEASURED / "kv_ledger.csv"))
    assert len(table) >= 48
    for column in ("error_frac", "left_out_frac"):
        sizes = [abs(getattr(row, column)) for row in table]
        assert statistics.median(sizes) <= 0.001
        assert max(sizes) <= 0.015


@needs_data
def test_blocks_against_the_runs_marked_measured():
    table = errors(read_runs(MEASURED / "experiments.csv.gz"))
    assert len(table) >= 9
    for column in ("error_frac", "left_out_frac"):
        sizes = [abs(getattr(row, column)) for row in table]
        assert statistics.median(sizes) <= 0.001
        assert max(sizes) <= 0.01


@needs_data
def test_the_committed_constants_are_what_the_fit_gives():
    for starts in (read_table(MEASURED / "kv_ledger.csv"), read_runs(MEASURED / "experiments.csv.gz")):
        new, old = fit(starts, starts[0].version), memory_constants(starts[0].version)
        assert new.sampler_bytes_per_logit == pytest.approx(old.sampler_bytes_per_logit, rel=0.01)
        assert new.sampler_copies == pytest.approx(old.sampler_copies, rel=0.05)
        assert new.forward_copies == pytest.approx(old.forward_copies, rel=0.05)
        assert new.workspace_bytes == pytest.approx(old.workspace_bytes, rel=0.05)
        for tp, size in new.non_torch.items():
            assert size == pytest.approx(old.non_torch[tp], rel=0.02)


def test_the_fit_recovers_constants_it_is_shown():
    truth = replace(memory_constants("vllm-0.15.1"), non_torch={1: 3e8, 2: 7e8})
    shown = [start(name, tp) for name in ("llama-2-7b", "llama-3.1-8b", "qwen3-14b") for tp in (1, 2)]
    shown = [replace(s, blocks=predict(s, truth).n_blocks) for s in shown]
    found = fit(shown, "vllm-0.15.1")
    for tp, size in truth.non_torch.items():
        assert found.non_torch[tp] == pytest.approx(size, abs=2**22)  # half a block


def test_inputs_alone_make_the_prediction():
    one = start("llama-3.1-8b", 1)
    constants = memory_constants("vllm-0.15.1")
    other = replace(one, blocks=99, activation_gib=50.0, non_torch_gib=50.0)
    assert predict(one, constants) == predict(other, constants)


def test_a_table_without_its_columns_is_refused(tmp_path):
    path = tmp_path / "kv_ledger.csv"
    with pytest.raises(CalibrationError, match="cannot be read"):
        read_table(path)
    path.write_text("model,tp\nx,1\n")
    with pytest.raises(CalibrationError, match="column pp is missing"):
        read_table(path)


@needs_data
def test_the_command_prints_constants_and_errors(capsys):
    assert main([str(MEASURED)]) == 0
    out = capsys.readouterr().out
    assert "[vllm-0.19]" in out
    assert "[vllm-0.15.1]" in out
    assert out.count("model left out: median") == 2
