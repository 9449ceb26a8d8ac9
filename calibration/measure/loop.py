"""The measuring loop: cases in order of importance, under a time budget, resumable, the table safe on disk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from stepline.traces.errors import CalibrationError

from .cases import Case
from .kernels import Kernels, Unsupported, prepare
from .table import TimingTable
from .timers import Timer

FLUSH_S = 5.0
"""Seconds between two writes of the table: what a power cut can cost."""


class Progress(Protocol):
    """Where the loop says how far it is."""

    def advance(self, label: str) -> None:
        """One more case is done; `label` names the next."""
        ...


@dataclass(slots=True)
class Outcome:
    """What a run of the loop did: cases timed now, kept from before, left for lack of time, unsupported by reason."""

    timed: int = 0
    kept: int = 0
    left: int = 0
    unsupported: dict[str, int] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every case that the device supports is in the table."""
        return self.left == 0


def run(
    cases: Sequence[Case],
    kernels: Kernels,
    timer: Timer,
    table: TimingTable,
    *,
    case_s: float,
    budget_s: float | None,
    progress: Progress,
    clock: Callable[[], float] = time.monotonic,
) -> Outcome:
    """Time every case that `table` lacks, until done or `budget_s` seconds are spent; the table is always flushed.

    Args:
        case_s: seconds of samples of one case.
        budget_s: seconds after which no further case is begun; None: no limit.
    """
    outcome = Outcome()
    start = flushed = clock()
    table.refuse_other_gpus(kernels.gpu)
    try:
        for done, case in enumerate(cases):
            if budget_s is not None and clock() - start > budget_s:
                outcome.left = len(cases) - done
                break
            progress.advance(case.label())
            _one(case, kernels, timer, table, case_s, outcome)
            if clock() - flushed > FLUSH_S:
                table.flush()
                flushed = clock()
    finally:
        table.flush()
    return outcome


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def _one(
    case: Case, kernels: Kernels, timer: Timer, table: TimingTable, case_s: float, outcome: Outcome
) -> None:
    refusals: tuple[type[Exception], ...] = (Unsupported, *kernels.failures)
    try:
        row = case.columns() | {"gpu": kernels.gpu, "library": kernels.library(case)}
        if row in table:
            outcome.kept += 1
            return
        prepared = prepare(case, kernels)
        timing = timer.time(prepared.calls, case_s, graph=prepared.graph)
    except refusals as reason:
        said = str(reason).partition("\n")[0]
        if "CUDA error" in said:  # such an error sticks to the process: every later call would fail as well
            raise CalibrationError(
                f"{case.label()}: {said}; the rows so far are kept, run again to go on"
            ) from reason
        text = (
            f"{case.kernel}: {said}"
            if isinstance(reason, Unsupported)
            else f"{case.kernel}: {_named(reason)}"
        )
        outcome.unsupported[text] = outcome.unsupported.get(text, 0) + 1
        return
    table.add(
        row
        | {"median_s": timing.median_s, "spread_s": timing.spread_s, "repeats": timing.repeats}
        | {"graph": timing.graph, "cold": prepared.cold}
    )
    outcome.timed += 1
