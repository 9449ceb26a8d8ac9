"""Speculative decoding: the acceptance law, exact tokens and blocks, the cost of verifying and drafting, whole runs."""

import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.batching.chunked import ChunkedPolicy
from stepline.sim import simulate, summary
from stepline.sim.cost import drafting, operators
from stepline.sim.cost.calibration import find_calibration
from stepline.sim.cost.catalogue import load_engine, load_gpu, load_model
from stepline.sim.cost.roofline import RooflineCostModel, context_column
from stepline.sim.cost.speculation import SpeculativeCostModel
from stepline.sim.cost.work import Progression, StepWork
from stepline.sim.engine.acceptance import TAPE_STEPS, Acceptance, AcceptanceTape
from stepline.sim.engine.sequence import Sequence
from stepline.sim.engine.speculative_decode_set import SpeculativeDecodeSet
from stepline.sim.study.config import RunConfig
from stepline.sim.study.setup import resolve
from stepline.sim.study.speculation import read_speculation
from stepline.traces.errors import ConfigError

from .engine_kit import Affine, by_index, run

H100 = load_gpu("h100-sxm")
EAGLE = {"method": "eagle", "num_speculative_tokens": 3, "acceptance": 0.7}
TAPE = AcceptanceTape(Acceptance.at_rate(0.7, 3), seed=0)


# --- the law


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.8, 0.95])
@pytest.mark.parametrize("gamma", [1, 3, 7])
def test_tokens_per_step_are_the_closed_form_of_leviathan(alpha, gamma):
    law = Acceptance.at_rate(alpha, gamma)
    expected = (1 - alpha ** (gamma + 1)) / (1 - alpha)
    assert law.tokens_per_step == pytest.approx(expected)
    tape = AcceptanceTape(law, seed=1)
    assert tape.tokens(17, TAPE_STEPS) / TAPE_STEPS == pytest.approx(expected, abs=1e-4)


def test_positions_and_counts_say_the_same():
    by_position = Acceptance.by_position([0.8, 0.5, 0.2])
    by_count = Acceptance.by_histogram([20, 30, 30, 20])
    assert by_position.accepted == pytest.approx(by_count.accepted)
    assert by_position.tokens_per_step == pytest.approx(1 + 0.8 + 0.5 + 0.2)


@given(place=st.integers(0, TAPE_STEPS - 1), tokens=st.integers(1, 400_000))
def test_steps_are_the_fewest_that_emit_the_tokens(place, tokens):
    steps = TAPE.steps(place, tokens)
    assert TAPE.tokens(place, steps) >= tokens > TAPE.tokens(place, steps - 1)


def test_the_tape_is_read_in_a_ring():
    whole = TAPE.tokens(0, TAPE_STEPS)
    assert TAPE.tokens(TAPE_STEPS - 5, 10) == TAPE.tokens(TAPE_STEPS - 5, 5) + TAPE.tokens(0, 5)
    assert TAPE.steps(5, 3 * whole) == 3 * TAPE_STEPS


# --- the decode set against one sequence at a time


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_blocks_tokens_and_contexts_are_those_of_every_member_walked_alone(data):
    size = data.draw(st.sampled_from([1, 4, 16]))
    decode = SpeculativeDecodeSet(size, TAPE)
    members: dict[Sequence, tuple[int, int, int]] = {}  # joined at, KV then, tokens left then
    for index in range(data.draw(st.integers(1, 12))):
        kv, left = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 80))
        seq = Sequence(index, 0.0, 0.0, kv, left + 1)
        seq.computed_tokens, seq.last_token_s, seq.generated_tokens = kv, decode.emit_s, 1
        decode.join(seq, kv, left)
        members[seq] = (decode.counter, kv, left)
        if data.draw(st.booleans()) and len(members) > 1:
            gone = next(iter(members))
            joined, kv, left = members.pop(gone)
            walked = _walked(gone, decode.counter - joined, left)
            assert decode.generated(gone, left + 1) == 1 + walked
            assert decode.leave(gone) == kv + walked
        steps = min(data.draw(st.integers(1, 9)), decode.steps_to_change())
        before = [_blocks(s, m, decode.counter, size) for s, m in members.items()]
        opened = decode.blocks_in(steps)
        assert decode.steps_within(opened, steps) == steps
        assert decode.steps_within(opened - 1, steps) < steps
        decode.advance(steps, decode.emit_s + steps)
        assert opened == sum(_blocks(s, m, decode.counter, size) for s, m in members.items()) - sum(before)
        for seq, kv_tokens in decode.pop_finished():
            _, kv, left = members.pop(seq)
            assert kv_tokens == kv + left
        even = sum(kv + left * (decode.counter - at) / TAPE.steps(TAPE.place(s.index, 1), left)
                   for s, (at, kv, left) in members.items())  # fmt: skip
        assert decode.context_tokens()[0] == pytest.approx(even + 4 * len(members))
        if not members:
            assert not any(decode.borders)
            assert decode.n_growing == 0


def _walked(seq, steps, left):
    place = TAPE.place(seq.index, 1)
    return min(left, sum(TAPE.tokens((place + i) % TAPE_STEPS, 1) for i in range(steps)))


def _blocks(seq, member, counter, size):
    joined, kv, left = member
    return -(-(kv + _walked(seq, counter - joined, left)) // size)


# --- what a step costs


@cache
def priced(draft="eagle", gamma=3, target="llama-2-7b"):
    args = load_model(target), H100, find_calibration("h100-sxm")
    engine = load_engine("vllm-v1")
    cost = RooflineCostModel(*args, engine=engine, queries=gamma + 1)
    asked = read_speculation(
        json.dumps(
            {"method": draft, "num_speculative_tokens": gamma, "acceptance": 0.5, "model": "llama-2-7b"}
        )
    )
    return SpeculativeCostModel(cost, asked.draft(cost, kv_dtype="bf16"))


WORKS = (
    StepWork(n_decode=1, context_tokens=(500,), logits_rows=1),
    StepWork(n_decode=60, context_tokens=(90_000,), logits_rows=60),
    StepWork(700, 2, 500_000, 1300, 0, (0,), 2),
    StepWork(700, 1, 700 * 600 + 350 * 701, 1300, 12, (9_000,), 13),
)


@pytest.mark.parametrize("draft", ["eagle", "medusa", "ngram", "draft_model"])
@pytest.mark.parametrize("work", WORKS)
def test_breakdowns_sum_to_the_step_and_stay_above_the_floor(draft, work):
    model = priced(draft)
    cost = model.explain(work)
    assert cost.total_s == pytest.approx(model.step_s(work))
    assert cost.total_s > max(cost.flops / H100.peak_flops["bf16"], cost.hbm_bytes / H100.hbm_bytes_per_s)


@pytest.mark.parametrize("draft", ["eagle", "medusa", "ngram", "draft_model"])
def test_a_leap_is_its_steps(draft):
    model, n, rate = priced(draft), 20, 37.5
    work = StepWork(n_decode=n, context_tokens=(30_000.0,), logits_rows=n)
    first, delta, steps = model.leap(work, (rate,), 400)
    assert steps > 1
    for i in (0, steps - 1):
        one = model.step_s(work._replace(context_tokens=(30_000 + i * rate,)))
        assert first + i * delta == pytest.approx(one, rel=1e-9)


def test_verifying_computes_every_token_and_reads_weights_and_keys_once():
    n, context, q = 8, 80_000, 4
    verify, plain = (
        RooflineCostModel(load_model("llama-2-7b"), H100, find_calibration("h100-sxm"), queries=queries)
        for queries in (q, 1)
    )
    wide = verify.explain(StepWork(n_decode=n, context_tokens=(context,), logits_rows=q * n))
    narrow = plain.explain(StepWork(n_decode=n, context_tokens=(context,), logits_rows=n))
    assert wide.flops == pytest.approx(q * narrow.flops)
    held = operators.kv_bytes_per_token(verify.model) * context
    weights = sum(operators.gemm_weight_bytes(x.n, x.k) * x.count for x in operators.linears(verify.model))
    activations = [cost.hbm_bytes - held - weights for cost in (wide, narrow)]
    assert activations[0] == pytest.approx(q * activations[1])


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-2-7b", 0.24), ("llama-2-13b", 0.37), ("llama-2-70b", 0.99)]
)
def test_an_eagle_head_has_the_published_parameters(name, billions):
    """EAGLE (Li et al. 2024), section 4: trainable parameters of the heads of LLaMA2-Chat."""
    weights = drafting.footprint_of_eagle(
        load_model(name), tp=1, kv_dtype="bf16", block_size=16
    ).weights_bytes
    assert weights / 2e9 == pytest.approx(billions, abs=0.005)


def test_medusa_heads_hold_a_block_and_a_vocabulary_each():
    """Medusa (Cai et al. 2024), section 2.1: W1 of d x d and W2 of V x d in each of its heads."""
    found = drafting.footprint_of_heads(load_model("llama-2-7b"), tp=1, n_drafted=5)
    assert found.weights_bytes == 2 * 5 * (4096 * 4096 + 4096 * 32000)
    moved = priced("medusa", 5).draft.explain_many({"n_decode": np.array([1.0])})[2][0]
    assert moved == pytest.approx(found.weights_bytes, rel=0.002)


def test_a_draft_runs_once_over_the_verified_tokens_and_then_token_by_token():
    model = priced("draft_model", 4)
    draft = model.draft
    work = WORKS[1]
    assert draft.step_s(work) == pytest.approx(draft.first.step_s(work) + 3 * draft.next.step_s(work))
    columns = {k: np.array([float(v)]) for k, v in work._asdict().items() if k != "context_tokens"}
    columns[context_column(0)] = np.array([float(work.context_tokens[0])])
    assert draft.explain_many(columns)[1][0] == pytest.approx(
        draft.first.explain(work).flops + 3 * draft.next.explain(work).flops
    )


def test_lookahead_computes_windows_and_guesses_in_one_pass():
    """Lookahead decoding (Fu et al. 2024): W = G = 5, N = 4: 30 tokens a step of each sequence, no draft model."""
    asked = {"method": "lookahead", "num_speculative_tokens": 3, "lookahead_window": 5, "acceptance": 0.5}
    config = RunConfig(speculative_config=json.dumps(asked), max_num_seqs=64)
    cost = resolve(config).cluster.replicas[0].cost_model
    plain = resolve(RunConfig()).cluster.replicas[0].cost_model
    work = StepWork(n_decode=2, context_tokens=(2000,), logits_rows=2)
    assert cost.explain(work).flops == pytest.approx(30 * plain.explain(work).flops)


# --- whole runs


def speculating(rows, alpha=0.7, gamma=3, cost=None, **kw):
    tape = AcceptanceTape(Acceptance.at_rate(alpha, gamma), seed=0)
    return run(rows, cost or Affine(per_context=1e-4), tape=tape, **kw)


def test_tpot_is_the_step_over_the_tokens_of_a_step():
    """1 s a step at α = 0.7, γ = 3: 2.533 tokens a step."""
    result = speculating([(0.0, 100, 2001)] * 40, cost=Affine())
    done = by_index(result)
    tpot = ((done["finish_s"] - done["first_token_s"]) / 2000).mean()
    assert tpot == pytest.approx((1 - 0.7) / (1 - 0.7**4), rel=0.01)
    gaps = result.gaps
    assert (
        gaps.first_s == 1.0
    ).all()  # a client sees the tokens of a step together, as `vllm bench serve` counts


def test_every_token_is_emitted_and_every_block_comes_back_under_preemption():
    rows = [(0.3 * i, 20 + 7 * i, 30 + 11 * i) for i in range(12)]
    result = speculating(rows, kv_blocks=60, max_num_seqs=8)
    assert result.requests["preemptions"].sum() > 0
    assert by_index(result)["output_tokens"].tolist() == [o for _, _, o in rows]
    assert result.mechanisms["speculation"]["tokens_per_verification"] == pytest.approx(2.533, rel=0.05)
    emitted = float(result.totals.series["emitted_tokens"].sum())
    assert emitted == pytest.approx(sum(o for _, _, o in rows), rel=0.02)  # preempted ones end off their mean


class StepByStep(Affine):
    def leap(self, work, growth, n_steps):
        return Progression(self.step_s(work), 0.0, 1)


def test_leaping_and_stepping_agree():
    rows = [(1.7 * i, 30 + 13 * i, 20 + 29 * (i % 5)) for i in range(25)]
    leapt, stepped = (
        speculating(rows, cost=c(per_context=1e-3), max_num_seqs=6) for c in (Affine, StepByStep)
    )
    for column in ("first_token_s", "finish_s"):
        assert np.allclose(by_index(leapt)[column], by_index(stepped)[column], rtol=1e-9)


def test_policies_see_equal_luck():
    rows = [(0.0, 50, 200)] * 8
    one, other = (
        by_index(speculating(rows, cost=Affine(), max_num_seqs=n, policy=ChunkedPolicy())) for n in (8, 2)
    )
    lasted = [(t["finish_s"] - t["first_token_s"]).tolist() for t in (one, other)]
    assert lasted[0] == lasted[1]


def test_nothing_accepted_is_plain_decoding():
    rows = [(1.3 * i, 40 + 9 * i, 10 + 17 * (i % 4)) for i in range(20)]
    speculative = by_index(speculating(rows, alpha=0.0, cost=Affine(), kv_blocks=80))
    plain = by_index(run(rows, Affine(), kv_blocks=80))
    for column in ("first_token_s", "finish_s", "preemptions"):
        assert np.allclose(speculative[column], plain[column])


def flood(tmp_path, n):
    path = tmp_path / f"{n}.jsonl"
    path.write_text('{"timestamp": 0, "input_length": 200, "output_length": 200}\n' * n)
    return path


def test_what_drafting_gains_shrinks_with_the_batch(tmp_path):
    def gain(n):
        common = {"model": "llama-2-7b", "max_num_seqs": 512, "max_num_batched_tokens": 8192}
        plain, drafted = (
            summary(simulate(flood(tmp_path, n), **common, speculative_config=text))["tpot_s"]["mean"]
            for text in (None, json.dumps(EAGLE))
        )
        return plain / drafted

    alone, crowd = gain(1), gain(256)
    assert 1.8 < alone < Acceptance.at_rate(0.7, 3).tokens_per_step
    assert crowd < 0.75 * alone


def test_a_draft_takes_room_from_the_kv_cache():
    plain, drafted = (
        resolve(RunConfig(model="qwen3-32b", gpu="h200", speculative_config=text)).described["kv_ledger"]
        for text in (None, json.dumps({"model": "qwen3-4b", "num_speculative_tokens": 4, "acceptance": 0.6}))
    )
    weights = drafted["weights_bytes"] - plain["weights_bytes"]
    assert weights == pytest.approx(2 * 4.02e9, rel=0.03)
    assert drafted["block_bytes"] - plain["block_bytes"] == 16 * 36 * 2 * 8 * 128 * 2
    assert drafted["n_blocks"] == (plain["kv_bytes"] - weights) // drafted["block_bytes"]


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object"),
        ('{"metod": "eagle"}', "unknown key 'metod'; did you mean 'method'"),
        ('{"method": "eagel"}', "method: got 'eagel'; did you mean 'eagle'"),
        ('{"method": "eagle"}', "num_speculative_tokens: got None"),
        ('{"method": "draft_model", "num_speculative_tokens": 2}', "model: got None"),
        (
            '{"method": "eagle", "num_speculative_tokens": 2}',
            'acceptance: got none; add what your server measured, e.g. {"method": "eagle", '
            '"num_speculative_tokens": 2, "acceptance": 0.7}',
        ),
        (
            '{"method": "lookahead", "num_speculative_tokens": 2, "acceptance": 0.5}',
            "lookahead_window: got none",
        ),
        (
            '{"method": "eagle", "num_speculative_tokens": 2, "acceptance": 0.5, "lookahead_window": 5}',
            "go with",
        ),
        (
            '{"method": "eagle", "num_speculative_tokens": 2, "acceptance": 0.5, "draft_tensor_parallel_size": 0}',
            ">= 1",
        ),
        ('{"method": "eagle", "num_speculative_tokens": 2, "acceptance": 1.2}', "expected 2 numbers"),
        ('{"method": "eagle", "num_speculative_tokens": 2, "acceptance": [0.5]}', "expected 2 numbers"),
        ('{"method": "eagle", "num_speculative_tokens": 2, "acceptance": [0.5, 0.7]}', "never rise"),
        (
            '{"method": "eagle", "num_speculative_tokens": 1, "acceptance": {"histogram": [0, 0]}}',
            "not all 0",
        ),
        (
            '{"method": "eagle", "num_speculative_tokens": 1, "acceptance": 0.5, "prompt_lookup_max": 3}',
            "go with",
        ),
    ],
)
def test_a_wrong_config_says_what_is_wrong(given_, says):
    with pytest.raises(ConfigError, match=r"^--speculative-config: ") as caught:
        RunConfig(speculative_config=given_)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"model": "gpt-oss-20b"}, "cannot be combined with a model with sliding windows"),
        ({"policy": "static"}, "cannot be combined with a padding policy"),
        ({"max_num_batched_tokens": 512}, "times the 4 tokens that a step verifies"),
        ({"attention_backend": "naive"}, "naive attention of several drafted tokens"),
        ({"speculative_config": '{"model": "llama-2-7b", "num_speculative_tokens": 3, "acceptance": 0.5}'},
         "expected the 128256 of llama-3.1-8b"),
        ({"model": "mixtral-8x7b", "data_parallel_size": 4}, "--data-parallel-size"),
    ],
)  # fmt: skip
def test_what_does_not_go_together_is_refused(settings_, says, tmp_path):
    with pytest.raises(ConfigError, match=says):
        simulate(flood(tmp_path, 1), **{"speculative_config": json.dumps(EAGLE), **settings_})


def test_a_draw_of_the_constants_draws_for_target_and_draft():
    from stepline.sim.study.plan_tasks import drawn

    setup = resolve(RunConfig(speculative_config=json.dumps(EAGLE)))
    model = drawn(setup, 3).cluster.replicas[0].cost_model
    assert isinstance(model, SpeculativeCostModel)
    assert model.draft.first.calibration == model.target.calibration
    assert model.step_s(WORKS[0]) != setup.cluster.replicas[0].cost_model.step_s(WORKS[0])
