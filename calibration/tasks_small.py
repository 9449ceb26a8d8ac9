"""Collectives and elementwise kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from stepline.sim.cost import forms, operators
from stepline.sim.cost.specs import GpuSpec

from .fit_core import Array
from .task import Columns, Task, aliases, plan, powers

if TYPE_CHECKING:
    import pandas as pd


CUSTOM_BUFFER_BYTES = 8 * 2**20
"""Messages under it go through vLLM's own all-reduce (`CustomAllreduce`, max_size 8192 KB), larger ones to NCCL."""


_TWO_PATHS = tuple(
    {"t0_s": 5e-6, "one_shot_eff": one, "two_shot_s": two, "two_shot_eff": 0.6}
    for one in (0.3, 0.7)
    for two in (1e-5, 1e-4)
)
_STARTS = (*_TWO_PATHS, *(start | {"ring_s": 1e-4, "ring_eff": 0.8} for start in _TWO_PATHS))
"""With a ring, and without one for a measurement of too few sizes to fit it."""


def _collective_task(kind: str, world: int) -> Task:
    def select(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
        del dtype
        rows = table[(table["kernel"] == kind) & (table["world"] == world)]
        return rows.loc[rows["graph"].fillna(True).astype(bool)]

    def predict(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
        del dtype
        return np.asarray(forms.collective_s(x["message_bytes"], world, c, gpu, kind))

    def floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
        del dtype
        wire = (world - 1) / world * x["message_bytes"]
        return np.asarray(wire / gpu.nvlink_bytes_per_s)

    return Task(
        name=f"{kind}_{world}",
        form="alpha-beta",
        select=select,
        predict=predict,
        floor=floor,
        starts=_STARTS,
        choices=({}, {"one_shot_bytes": CUSTOM_BUFFER_BYTES}) if kind == "all_reduce" else ({},),
        shapes=("message_bytes",),
        group=("message_bytes",),
        size="message_bytes",
        regime=("message_bytes", (65536.0, 1048576.0, 16777216.0)),
        residual=plan({"message_bytes": powers(8, 30)}, 0.05, scales=(1.0,)),  # too few sizes to choose by
        scope=f"{world} GPUs, CUDA graph",
    )


COLLECTIVES = tuple(
    _collective_task(kind, world)
    for kind in ("all_reduce", "all_gather", "all_to_all")
    for world in (2, 4, 8)
)


ELEMENTWISE_ELEMENTS = {"norm": 2.0, "add_norm": 4.0, "residual": 3.0, "act": 3.0, "rope": 2.0}
"""Elements moved for each of the m · n of a row: x in and out; with the residual too; two in, one out."""


def _elementwise_rows(table: pd.DataFrame, dtype: str) -> pd.DataFrame:
    rows = table.loc[(table["kernel"] == "elementwise") & table["dtype"].isin(aliases(dtype))]
    moved = rows["operation"].map(ELEMENTWISE_ELEMENTS)
    elements = (rows["m"] * rows["n"]).astype("Float64") * moved.astype("Float64")
    sized = rows.assign(message_bytes=elements * operators.bytes_per_element(dtype))
    known: pd.DataFrame = sized.loc[moved.notna()]
    return known


def _elementwise_s(c: Mapping[str, float], x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    del dtype
    return np.asarray(c["t0_s"] + x["message_bytes"] / (c["memory_eff"] * gpu.hbm_bytes_per_s))


def _elementwise_floor(x: Columns, gpu: GpuSpec, dtype: str) -> Array:
    del dtype
    return np.asarray(x["message_bytes"] / gpu.hbm_bytes_per_s)


ELEMENTWISE = Task(
    name="elementwise",
    form="launch-bytes",
    select=_elementwise_rows,
    predict=_elementwise_s,
    floor=_elementwise_floor,
    starts=({"t0_s": 2.5e-6, "memory_eff": 0.5},),
    shapes=("message_bytes",),
    group=("message_bytes",),
    size="message_bytes",
    regime=("message_bytes", (65536.0, 1048576.0, 16777216.0)),
    scope="norm, add + norm, residual add, activation, rope; a median over operations of equal bytes",
)
