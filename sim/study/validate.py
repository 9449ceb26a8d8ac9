"""Replays a folder of measured runs and holds the simulator against them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

from .measured import Experiment, chosen, load_measured
from .validation_runs import LAW_SEEDS, MOE_WARM_UP_REQUESTS, Outcome, run_experiment
from .validation_scores import by_experiment, by_group, by_peer, peer_table, value_table

if TYPE_CHECKING:
    import pandas as pd


UNSCORED = (
    "nothing to score: no measured value (of class-A MoE runs: no request from number "
    f"{MOE_WARM_UP_REQUESTS} on)"
)


@dataclass(frozen=True, slots=True, eq=False)
class Validation:
    """Outcomes of a validation and the tables made of them (columns: see `validation_scores`)."""

    outcomes: tuple[Outcome, ...]
    values: pd.DataFrame
    peers: pd.DataFrame

    @property
    def skipped(self) -> dict[str, str]:
        """Experiments that could not be replayed, or not be held against anything: why."""
        scored = set() if self.values.empty else set(self.values["exp_key"])
        reasons = {o.experiment.key: o.skipped or UNSCORED for o in self.outcomes}
        return {key: why for key, why in reasons.items() if key not in scored}

    def experiments(self) -> pd.DataFrame:
        """Mean |error| by experiment."""
        return by_experiment(self.values)

    def groups(self, key: str = "group", stat: str = "mean") -> pd.DataFrame:
        """Mean (or median) |error| by group, or by another column (`tp`, `engine`, `gpu`, `arch`, `model`, `set`)."""
        return by_group(self.values, key, stat)

    def against_peers(self) -> pd.DataFrame:
        """Mean |error| of peers and of ours on the same experiments."""
        return by_peer(self.values, self.peers)


def validate(
    folder: str | Path,
    sets: Iterable[str] = ("all",),
    *,
    only: str = "",
    seeds: int = LAW_SEEDS,
    jobs: int | None = None,
    on_done: Callable[[Outcome, int, int], None] | None = None,
) -> Validation:
    """Replay every experiment of `folder` (format: `measured`) that is in `sets` and whose key contains `only`.

    Args:
        seeds: replications of a statistical replay.
        jobs: processes; None: as many as the machine has cores (at most 8).
        on_done: called as experiments finish, with how many are done and how many there are.

    Raises:
        ConfigError: a folder that is not in the format, an unknown set.
    """
    wanted = [e for e in chosen(load_measured(folder), sets) if only in e.key]
    outcomes = _run_all(wanted, seeds, jobs or min(os.cpu_count() or 1, 8), on_done)
    return Validation(outcomes, value_table(outcomes), peer_table(outcomes))


def _run_all(
    experiments: Sequence[Experiment],
    seeds: int,
    jobs: int,
    on_done: Callable[[Outcome, int, int], None] | None,
) -> tuple[Outcome, ...]:
    """Outcomes in the order of `experiments`, however many processes work."""
    run = partial(run_experiment, seeds=seeds)
    total = len(experiments)
    outcomes: list[Outcome] = []
    if jobs == 1 or total < 2:
        for experiment in experiments:
            outcomes.append(_told(run(experiment), len(outcomes) + 1, total, on_done))
        return tuple(outcomes)
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for outcome in pool.map(run, experiments, chunksize=1):
            outcomes.append(_told(outcome, len(outcomes) + 1, total, on_done))
    return tuple(outcomes)


def _told(
    outcome: Outcome, done: int, total: int, on_done: Callable[[Outcome, int, int], None] | None
) -> Outcome:
    if on_done is not None:
        on_done(outcome, done, total)
    return outcome
