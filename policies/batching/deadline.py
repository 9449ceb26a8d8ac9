"""By deadline of the first token, or by the slack that is left until it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ordered import OrderedPolicy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepline.sim.engine.sequence import Sequence


class DeadlineOrder:
    """Ranks by arrival + the class's TTFT target - seconds that the prompt takes."""

    def __init__(self, default_s: float, by_class: Mapping[str, float], s_per_token: float) -> None:
        self.default_s = default_s
        self.by_class = by_class
        self.s_per_token = s_per_token

    def key(self, seq: Sequence) -> float:
        """Latest start of the prompt."""
        target_s = self.by_class.get(seq.slo_class or "", self.default_s)
        return seq.arrival_s + target_s - self.s_per_token * (seq.prompt_tokens - seq.computed_tokens)


class EdfPolicy(OrderedPolicy):
    """Earliest deadline first: arrival + TTFT target, `ttft_s` or, for an `slo_class` of the trace, its own keyword.

    `edf:ttft_s=2,interactive=0.5,batch=60`. Default 2 s: MLPerf Inference llama2-70b Server.
    """

    def __init__(
        self, *, ttft_s: float = 2.0, patience_s: float | None = None, **class_ttft_s: float
    ) -> None:
        super().__init__(patience_s=patience_s)
        for name, value in {"ttft_s": ttft_s, **class_ttft_s}.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{name}: got {value!r}, expected seconds > 0")
        self.ttft_s, self.class_ttft_s = ttft_s, class_ttft_s

    def make_order(self) -> DeadlineOrder:
        """By deadline."""
        return DeadlineOrder(self.ttft_s, self.class_ttft_s, 0.0)


class SlackPolicy(EdfPolicy):
    """Least slack first: `edf` less the time that the prompt's uncomputed tokens take at `prefill_tokens_per_s`.

    Slack shrinks alike for all who wait, so the order is that of deadline - work and need not be kept up to date.
    Default 20 000 tokens/s: about an 8B model on one H100 (16 GFLOP a token at two thirds of 989 TFLOP/s: 41 000, less
    attention and mixed steps).
    """

    def __init__(
        self,
        *,
        ttft_s: float = 2.0,
        prefill_tokens_per_s: float = 20_000.0,
        patience_s: float | None = None,
        **class_ttft_s: float,
    ) -> None:
        super().__init__(ttft_s=ttft_s, patience_s=patience_s, **class_ttft_s)
        if not prefill_tokens_per_s > 0:
            raise ValueError(f"prefill_tokens_per_s: got {prefill_tokens_per_s}, expected a number > 0")
        self.prefill_tokens_per_s = prefill_tokens_per_s

    def make_order(self) -> DeadlineOrder:
        """By latest start."""
        return DeadlineOrder(self.ttft_s, self.class_ttft_s, 1.0 / self.prefill_tokens_per_s)
