"""Multi-level feedback queue with skip-join: FastServe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .ordered import OrderedPolicy

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class LevelOrder:
    """Ranks by level, then arrival. A level's quantum is twice that of the one above it."""

    def __init__(self, quantum_tokens: int, levels: int) -> None:
        self.quantum_tokens = quantum_tokens
        self.levels = levels
        self._view: Any = None

    def attach(self, view: Any) -> None:
        """Knows progress."""
        self._view = view

    def key(self, seq: Sequence) -> tuple[int, float]:
        """Level by service: the prompt (which a job joins with: skip-join) and what was generated since."""
        served = seq.input_tokens + self._view.generated_tokens(seq)
        level, last = (served // self.quantum_tokens).bit_length(), self.levels - 1
        return (level if level < last else last, seq.arrival_s)


class FeedbackPolicy(OrderedPolicy):
    """A preemptive multi-level feedback queue: who has been served more gives way to who has been served less.

    A job joins the level whose quantum covers its prompt, and sinks a level each time its service (prompt + generated
    tokens) doubles; level k holds up to `quantum_tokens`·2^k. `patience_s`: who has queued for longer goes first
    (FastServe's promotion against starvation). Displaced sequences are recomputed, or swapped with
    `--preemption last-in:mode=swap`. Source: Wu et al., "Fast Distributed Inference Serving for Large Language Models"
    (FastServe), skip-join MLFQ, section 4.1.
    """

    preempted_first = False
    preemptive = True
    moves = True

    def __init__(
        self, *, quantum_tokens: int = 512, levels: int = 8, patience_s: float | None = 10.0
    ) -> None:
        super().__init__(patience_s=patience_s)
        for name, value in (("quantum_tokens", quantum_tokens), ("levels", levels)):
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected an integer >= 1")
        self.quantum_tokens, self.levels = quantum_tokens, levels

    def make_order(self) -> LevelOrder:
        """By level."""
        return LevelOrder(self.quantum_tokens, self.levels)
