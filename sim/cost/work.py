"""What the cost model sees of a step (`StepWork`) and what it answers (`StepCost`, `Progression`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

KERNELS = ("gemm", "attention_prefill", "attention_decode", "moe", "elementwise", "lm_head", "comm", "host")
"""Kernel classes of a breakdown, in the order of the columns of `StepCost`."""

BOUNDS = ("compute", "weight_bandwidth", "kv_bandwidth", "comm", "latency", "host")
"""What can make a kernel's time: the terms of the roofline, serial chains and launches (`latency`), the host. A pipeline
adds `bubble`, what a stage waits for the others."""


class StepWork(NamedTuple):
    """The few sums that price one engine step. All are totals over the sequences of the step.

    prefill_tokens     prompt tokens computed (Σ c)
    prefill_seqs       sequences with a chunk in this step
    attention_pairs    query-key pairs of the chunks: Σ c·done + c(c+1)/2
    prefill_kv_tokens  Σ done + c: keys that the chunks' attention reads
    n_decode           sequences that decode one token
    context_tokens     Σ context over the decodes, the token being computed included, per attention window of the
                       model: `context_tokens[i]` goes with `ModelSpec.attention_windows[i]` (one entry for most)
    logits_rows        rows through the LM head
    generated_tokens   Σ tokens that the decodes have emitted so far: their context less their input

    Sums that are floats may be means: of a share of a step, or where what a step emits is drawn.
    """

    prefill_tokens: int = 0
    prefill_seqs: int = 0
    attention_pairs: float = 0
    prefill_kv_tokens: float = 0
    n_decode: int = 0
    context_tokens: tuple[float, ...] = (0,)
    logits_rows: int = 0
    generated_tokens: float = 0

    @property
    def new_tokens(self) -> int:
        """Tokens through the linear layers: chunks and decodes."""
        return self.prefill_tokens + self.n_decode


def plain(work: StepWork) -> StepWork:
    """The same sums in Python's own numbers: the compiled pricing takes no NumPy scalars.

    >>> import numpy as np
    >>> plain(StepWork(np.int64(3), context_tokens=(np.float64(2.0),)))[:6]
    (3, 0, 0, 0, 0, (2.0,))
    """
    sums: list[Any] = [tuple(map(_plain, x)) if isinstance(x, tuple) else _plain(x) for x in work]
    return StepWork(*sums)


def _plain(number: Any) -> Any:
    return number.item() if hasattr(number, "item") else number


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds of one step by kernel class and, for each class, by the bound that made them.

    `seconds[kernel][bound]`; the step lasts `total_s`, the sum of all entries (host time that overlaps GPU time is
    not in it). `flops` and `hbm_bytes` are the work's floor amounts on one GPU of the TP group (for MFU and MBU).
    """

    seconds: dict[str, dict[str, float]]
    flops: float
    hbm_bytes: float

    @property
    def total_s(self) -> float:
        """Duration of the step in seconds."""
        return sum(s for by_bound in self.seconds.values() for s in by_bound.values())


class Progression(NamedTuple):
    """Durations of `n` consecutive pure-decode steps in arithmetic progression: first, first + delta, ... (s)."""

    first_s: float
    delta_s: float
    n: int


def context_column(window: int) -> str:
    """Name of the step column that holds Σ context of attention window `window`."""
    return "context_tokens" if window == 0 else f"context_tokens_{window}"


class CostModel(Protocol):
    """Prices steps. Pure: the same work always costs the same.

    A model whose pure-decode step is piecewise linear in the context of its one attention window may also offer
    `decode_lines`, a mapping from n_decode to (ends, [(fixed_s, slope_s), ...]): such a step lasts fixed + slope ·
    context seconds by the first piece whose end is >= context (the last end is infinite), less `generated_s` · Σ input
    tokens where it has that attribute (seconds a generated token, which are in the slope). It must agree with `leap`,
    which it saves the engine from asking.

    A plug-in (`--cost-model module:Class`) needs `step_s` alone; without `leap` it is asked once a step, without
    `explain` its steps are booked under one class (`plugins.completed` adds what is missing). It may also have
    `warnings: tuple[str, ...]`, what a reader of the result must know (constants of another GPU, work outside the
    range of the data); they may grow with each `explain_many`.
    """

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step, > 0."""
        ...

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """Durations of the next pure-decode steps, of which `work` is the first.

        `growth[i]`: by how much `work.context_tokens[i]` grows each step (`work.generated_tokens` grows by
        `work.n_decode`). Returns a progression of at least 1 and at
        most `n_steps` steps (fewer where the form bends).
        """
        ...

    def explain(self, work: StepWork) -> StepCost:
        """The breakdown of `step_s(work)`; its total equals it."""
        ...

    def explain_many(self, columns: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], Any, Any]:
        """The breakdown of many steps at once.

        `columns`: arrays of shape (steps,) by name, the fields of `StepWork`; `context_tokens` is that of the first
        attention window, `context_tokens_1`, ... of the others; for a leap the mean context over its steps, a float.
        Returns {kernel: {bound: seconds}}, FLOPs and HBM bytes (one GPU of a TP group), arrays of shape (steps,); the
        seconds of a row sum to `step_s` of its work.
        """
        ...
