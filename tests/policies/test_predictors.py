"""Predictors of output length: what they learn from a run."""

from __future__ import annotations

from stepline.policies.batching.shortest_first import SjfPolicy
from stepline.sim.engine.sequence import Sequence

from ..sim.engine_kit import Affine, by_index, run


class Kept(SjfPolicy):
    """`sjf:predictor=history` whose order can be looked at afterwards."""

    def __init__(self):
        super().__init__(predictor="history")

    def make_order(self):
        self.order = super().make_order()
        return self.order


def learned(rows, tokens, **kw):
    """What a run's replica then predicts for a prompt of so many tokens."""
    policy = Kept()
    result = run(rows, Affine(1.0), policy, **kw)
    return policy.order.predictor.predict(Sequence(99, 0.0, 0.0, tokens, 1)), by_index(result)["status"]


def test_history_is_the_mean_of_similar_prompts_and_of_all_where_there_are_none():
    rows = [(0.0, 40, 20), (0.0, 50, 10), (0.0, 100, 3)]
    assert learned(rows, 33)[0] == 15.0
    assert learned(rows, 100)[0] == 3.0
    assert learned(rows, 1)[0] == 11.0


def test_history_learns_nothing_from_who_is_turned_away_or_gives_up():
    rejected, status = learned([(0.0, 40, 20), (1.0, 40, 5000)], 40, max_model_len=1000)
    assert status.tolist() == [0, 1]
    assert rejected == 20.0
    given_up, status = learned([(0.0, 40, 20), (1.0, 40, 900)], 40, client_timeout_s=50.0)
    assert status.tolist() == [0, 2]
    assert given_up == 20.0
