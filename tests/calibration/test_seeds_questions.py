"""The five self-check questions are answered with numbers that follow from operators and calibrated kernels."""

from __future__ import annotations

import pytest
from stepline.calibration.seeds.cli import main
from stepline.calibration.seeds.questions import (
    QUESTIONS,
    doubled_tpot,
    fp8_decode,
    long_context_fit,
    moe_against_dense,
    spiky_tpot,
)


def test_fp8_gives_less_than_twice_the_rate():
    n = fp8_decode().numbers
    assert n["bf16_floor_ms"] == pytest.approx(29.5, rel=0.01)  # 141 GB at 4.8 TB/s, and 1 k of KV
    assert n["fp8_floor_ms"] == pytest.approx(15.2, rel=0.01)  # LM head and embedding stay in 16 bits
    assert n["fp8_floor_ms"] < n["fp8_priced_ms"] < n["bf16_priced_ms"]
    assert 0.05 < n["undershoot_frac"] < 0.4


def test_64_k_of_fp8_kv_fits_beside_int4_weights():
    n = long_context_fit().numbers
    assert n["kv_gb"] == pytest.approx(85.9, rel=0.001)
    assert n["together_gb"] < 141
    assert n["together_gb"] + n["kv_gb"] > 141  # in bf16 it would not


def test_long_prompts_make_the_tail():
    n = spiky_tpot().numbers
    assert n["tensor_use_frac"] < 0.1
    assert n["step_with_8k_prompt_ms"] > 5 * n["step_with_512_chunk_ms"] > 5 * n["decode_step_ms"]


def test_a_batch_of_32_doubles_a_step_by_kv_or_by_prompts_only():
    n = doubled_tpot().numbers
    assert n["batch_32_ms"] < 1.5 * n["batch_1_ms"]
    assert n["doubling_context_tokens"] > 4096
    assert 32 < n["doubling_chunk_tokens"] < 4096


def test_the_moe_wins_alone_and_loses_in_a_batch():
    n = moe_against_dense().numbers
    assert n["batch_1_ratio"] == pytest.approx(70.5 / 37.7, rel=0.03)  # weights read by each
    assert n["batch_64_ratio"] < 1


def test_answers_are_sentences_with_their_numbers(capsys):
    assert main(["--questions"]) == 0
    said = capsys.readouterr().out
    assert [line[0] for line in said.splitlines() if line[:1].isdigit()] == ["1", "2", "3", "4", "5"]
    assert len(QUESTIONS) == 5
    assert main(["--question", "2", "--json"]) == 0
    assert '"kv_gb": 85.89' in capsys.readouterr().out
