"""`chunked-slo` finds the largest chunk that is in time, without asking for what it knows."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from stepline.policies.batching.chunk_size import LimitedPromptPolicy, SloChunkPolicy

from ..sim.engine_kit import Affine, run
from .conformance import simulate, worlds


class Exhaustive(LimitedPromptPolicy):
    """Prices every size in every step."""

    def __init__(self, *, tpot_s, min_chunk_tokens):
        self.tpot_s, self.least = tpot_s, min_chunk_tokens

    def most_tokens(self, view):
        if not view.n_decoding:
            return view.max_num_batched_tokens
        history = next((seq.computed_tokens for seq in view.prefilling), 0)
        sizes = [
            self.least << k for k in range(max(view.max_num_batched_tokens // self.least, 1).bit_length())
        ]
        return max([s for s in sizes if view.step_s(s, history) <= self.tpot_s], default=self.least)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(world=worlds(), tpot_s=st.sampled_from([1.0, 1.1, 1.2, 1.4, 2.0, 9.0]), least=st.integers(1, 5))
def test_it_chooses_as_if_every_size_were_priced_in_every_step(world, tpot_s, least):
    chosen, wanted = (
        simulate(world, kind(tpot_s=tpot_s, min_chunk_tokens=least)).requests
        for kind in (SloChunkPolicy, Exhaustive)
    )
    assert chosen.equals(wanted)


class Counting(Affine):
    """Counts how often it is asked."""

    asked = 0

    def step_s(self, work):
        self.asked += 1
        return super().step_s(work)


def test_a_long_prompt_beside_a_steady_batch_costs_one_question_a_step_and_not_two():
    cost = Counting(1.0, 0.1)
    policy = SloChunkPolicy(tpot_s=4.0, min_chunk_tokens=4)
    result = run([(0.0, 4, 500), (2.0, 1600, 1)], cost, policy, max_num_batched_tokens=512, record_steps=True)
    chunks = (result.steps["prefill_tokens"] == 16).sum()
    assert chunks == 100
    assert cost.asked < 2 * result.steps["n_steps"].count() + 10  # the step itself, and whether it is in time
