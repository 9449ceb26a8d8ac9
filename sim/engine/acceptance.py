"""How many drafted tokens a verification accepts: the law, and a tape of draws that every replica reads."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from stepline.traces.errors import ConfigError
from stepline.traces.random_streams import stream

TAPE_STEPS = 1 << 16
"""Verifications on the tape; it is read in a ring."""

STRIDE = 40_503
"""Steps between the beginnings of consecutive requests: 2^16 over the golden ratio, odd (Knuth, TAOCP 3, 6.4)."""

TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True)
class Acceptance:
    """`accepted[k]`: chance that exactly k of the γ drafted tokens are accepted, k = 0 .. γ; they sum to 1.

    A step emits one more: the target's own token.
    """

    accepted: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.accepted) < 2 or min(self.accepted) < 0 or abs(sum(self.accepted) - 1) > TOLERANCE:
            raise ConfigError(f"acceptance: got {self.accepted}, expected at least two chances that sum to 1")

    @staticmethod
    def at_rate(alpha: float, n_drafted: int) -> Acceptance:
        """Each token is accepted with chance `alpha`, all before it being accepted (Leviathan et al. 2023, section 3.1)."""
        return Acceptance.by_position([alpha**i for i in range(1, n_drafted + 1)])

    @staticmethod
    def by_position(rates: Sequence[float]) -> Acceptance:
        """`rates[i]`: share of drafts whose token i + 1 is accepted, never rising (vLLM's per-position acceptance rate)."""
        steps = list(pairwise([1.0, *rates, 0.0]))
        if any(later > earlier for earlier, later in steps):
            raise ConfigError(f"acceptance: got {list(rates)}, expected fractions of 1 that never rise")
        return Acceptance(tuple([earlier - later for earlier, later in steps]))

    @staticmethod
    def by_histogram(counts: Sequence[float]) -> Acceptance:
        """`counts[k]`: how often exactly k drafted tokens were accepted."""
        total = sum(counts)
        if not counts or min(counts) < 0 or total <= 0:
            raise ConfigError(f"acceptance: histogram: got {list(counts)}, expected counts >= 0, not all 0")
        return Acceptance(tuple([count / total for count in counts]))

    @property
    def n_drafted(self) -> int:
        """γ."""
        return len(self.accepted) - 1

    @property
    def tokens_per_step(self) -> float:
        """Mean tokens a verification emits; at a rate α, (1 - α^(γ+1)) / (1 - α).

        >>> round(Acceptance.at_rate(0.8, 4).tokens_per_step, 4)
        3.3616
        """
        return 1.0 + sum([k * chance for k, chance in enumerate(self.accepted)])


class AcceptanceTape:
    """Tokens emitted by each of `TAPE_STEPS` verifications, shuffled, in the frequencies of the law to the last card.

    A sequence reads on from a place that its trace row gives it, so that runs that differ in policy see equal luck.
    All questions are a look-up or a binary search, whatever the number of tokens.
    """

    def __init__(self, law: Acceptance, seed: int) -> None:
        self.law = law
        exact = np.cumsum(law.accepted) * TAPE_STEPS
        copies = np.diff(np.concatenate(([0], np.rint(exact)))).astype(np.int64)
        deck = np.repeat(np.arange(1, law.n_drafted + 2), copies)
        deck = deck[np.argsort(stream(seed, "speculation").random(TAPE_STEPS), kind="stable")]
        self._before: array[int] = array("q", np.concatenate(([0], np.cumsum(deck))).tolist())
        self._whole: int = self._before[-1]

    @staticmethod
    def place(index: int, generated_tokens: int) -> int:
        """Where a sequence that has generated so many tokens begins to read."""
        return (index * STRIDE + generated_tokens) % TAPE_STEPS

    def tokens(self, place: int, steps: int) -> int:
        """Tokens that `steps` verifications from `place` on emit."""
        rounds, end = divmod(place + steps, TAPE_STEPS)
        return rounds * self._whole + self._before[end] - self._before[place]

    def steps(self, place: int, tokens: int) -> int:
        """The fewest verifications from `place` on that emit at least `tokens` >= 1."""
        rounds, rest = divmod(self._before[place] + tokens - 1, self._whole)
        return rounds * TAPE_STEPS + bisect_left(self._before, rest + 1) - place
