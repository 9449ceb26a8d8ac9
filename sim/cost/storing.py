"""Steps of an engine that copies KV to host memory: what its scheduler loses once a pool has no room for the copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .breakdown import Explain, explained
from .forms import Array
from .specs import EngineProfile
from .work import CostModel, Progression, StepCost, StepWork

Rows = NDArray[np.bool_]
"""Which rows of a table, shape (rows,)."""

CROWDED = (
    "host memory for KV was too small for what running sequences generate: the scheduler searched all of it for each "
    "sequence in each step (a larger --kv-offloading-size ends that)"
)


class StoringCostModel:
    """A cost model whose host takes longer while copies of running sequences fill the pool (`work.CostModel`).

    vLLM 0.15.1 (`kv_offload/lru_manager.py`, `offloading_connector.py`) marks a copied block as readable, so that it
    can be evicted, when its request ends. Once a pool is full of blocks of running requests, `prepare_store` looks at
    every block of it, finds none, and does the same in the next step, for each sequence with a block to copy: n · blocks
    · `store_scan_s` more on the host. Taken to be so while the tokens that running sequences have generated do not fit
    (their prompts are shared, or were copied before).

    Args:
        calm, crowded: prices of steps while they fit, and while they do not.
        room_tokens: tokens that the pool holds.
    """

    def __init__(self, calm: CostModel, crowded: CostModel, room_tokens: int) -> None:
        self.calm, self.crowded, self.room_tokens = calm, crowded, room_tokens
        self._was_crowded = False

    @classmethod
    def of(
        cls, price: Callable[[EngineProfile], CostModel], engine: EngineProfile, blocks: int, block_size: int
    ) -> StoringCostModel:
        """On an engine with a pool of `blocks` of `block_size` tokens; `price` makes the cost model of a profile."""
        per_seq_s = engine.step_host_per_seq_s + blocks * engine.store_scan_s
        crowded = price(replace(engine, step_host_per_seq_s=per_seq_s))
        return cls(price(engine), crowded, blocks * block_size)

    @property
    def calibration(self) -> Any:
        """Of the model without a pool."""
        return getattr(self.calm, "calibration", None)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of both prices, and whether the pool was ever too small."""
        both = (*getattr(self.calm, "warnings", ()), *getattr(self.crowded, "warnings", ()))
        return tuple(dict.fromkeys((*both, *([CROWDED] if self._was_crowded else []))))

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step."""
        return (self.crowded if work.generated_tokens > self.room_tokens else self.calm).step_s(work)

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """As the prices' own, ending where the pool gets too small."""
        room = self.room_tokens - work.generated_tokens
        if room < 0:
            return self.crowded.leap(work, growth, n_steps)
        return self.calm.leap(work, growth, min(n_steps, int(room // max(growth[0], work.n_decode)) + 1))

    def explain(self, work: StepWork) -> StepCost:
        """The breakdown of one step."""
        return explained(self.explain_many, work)

    def explain_many(self, columns: Mapping[str, Any]) -> tuple[Mapping[str, Mapping[str, Any]], Any, Any]:
        """The breakdown of many, each by its own price."""
        n = len(columns["n_decode"])
        # bounds that know of no generated tokens ask without their column
        is_crowded = np.asarray(columns.get("generated_tokens", np.zeros(n))) > self.room_tokens
        if not is_crowded.any():
            return self.calm.explain_many(columns)
        self._was_crowded = True
        calm, crowded = (
            _rows(self.calm.explain_many, columns, ~is_crowded),
            _rows(self.crowded.explain_many, columns, is_crowded),
        )
        seconds = {
            kernel: {
                bound: _spread(
                    n, is_crowded, *(found[0].get(kernel, {}).get(bound) for found in (calm, crowded))
                )
                for bound in dict.fromkeys((*calm[0].get(kernel, {}), *crowded[0].get(kernel, {})))
            }
            for kernel in dict.fromkeys((*calm[0], *crowded[0]))
        }
        flops, moved = (_spread(n, is_crowded, calm[i], crowded[i]) for i in (1, 2))
        return seconds, flops, moved


def _rows(explain_many: Explain, columns: Mapping[str, Any], which: Rows) -> tuple[Any, Any, Any]:
    """The breakdown of some of the rows."""
    return explain_many({name: np.asarray(column)[which] for name, column in columns.items()})


def _spread(n: int, is_crowded: Rows, calm: Array | None, crowded: Array | None) -> Array:
    """One column of the rows of both kinds; None: 0 in all."""
    column = np.zeros(n)
    if calm is not None:
        column[~is_crowded] = calm
    if crowded is not None:
        column[is_crowded] = crowded
    return column
