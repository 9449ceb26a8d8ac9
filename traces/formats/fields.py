"""Checks of one column at a time: fast over the whole column; the bad row is looked for only after a failure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import TraceError
from ..trace import Ragged
from .document import Place

MAX_TOKENS = 2**31 - 1
"""Most tokens of one length: what the engines' own 32-bit position counters hold."""

MAX_ID = 2**63 - 1
"""Largest block id: ids are held as int64."""

MAX_TIME_S = 1e12
"""Latest time in seconds: some thirty thousand years, where float64 still tells tenths of a millisecond apart."""

_WHOLE = 2**53

Where = Callable[[int], str]
"""Gives `file:line` of row i of the chunk at hand."""


def bad(where: str | Place, name: str, got: Any, expected: str) -> NoReturn:
    """Raise the TraceError `where: name: got ..., expected ...`."""
    raise TraceError(f"{where}: {name}: got {shown(got)}, expected {expected}")


def shown(value: Any) -> str:
    """A value as the file spells it, cut to a readable length; None: `nothing`."""
    if value is None:
        return "nothing"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    try:
        text = orjson.dumps(value).decode()
    except TypeError:
        text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(value: Any) -> int | None:
    """`value` as an int, where it is one or a float without a fraction (None: it is neither)."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) <= _WHOLE:
        return int(value)
    return None


def integers(
    values: Sequence[Any], name: str, where: Where, low: int = 1, high: int = MAX_TOKENS
) -> NDArray[np.int64]:
    """`values` as int64, each a whole number in [low, high]. Raises: TraceError naming the first other one."""
    try:
        if set(map(type, values)) <= {int}:
            column = np.array(values, dtype=np.int64)
            if not len(column) or (column.min() >= low and column.max() <= high):
                return column
    except OverflowError:
        pass
    expected = f"an integer >= {low}"
    column = np.empty(len(values), dtype=np.int64)
    for i, value in enumerate(values):
        number = whole(value)
        if number is None or number < low:
            bad(where(i), name, value, expected)
        if number > high:
            bad(where(i), name, value, f"{expected} and <= {high}")
        column[i] = number
    return column


def times(
    values: Sequence[Any], name: str, where: Where, unit_s: float, low: float = 0.0
) -> NDArray[np.float64]:
    """Numbers in units of `unit_s` seconds as float64 seconds. Raises: TraceError naming the first bad one.

    Milliseconds are divided by 1000 and not multiplied by 0.001, so that they can be written back unchanged.
    """
    per_s = 1.0 / unit_s
    per_s = round(per_s) if per_s >= 1 else per_s
    if set(map(type, values)) <= {int, float}:
        column = np.array(values, dtype=np.float64) / per_s
        if not len(column) or (column.min() >= low and column.max() <= MAX_TIME_S):
            return column
    for i, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, int | float) or value / per_s < low:
            bad(where(i), name, value, f"a number >= {low:g}")
        if not value / per_s <= MAX_TIME_S:
            bad(where(i), name, value, f"a number >= {low:g} and <= {MAX_TIME_S * per_s:g}")
    return np.array(values, dtype=np.float64) / per_s


def id_lists(values: Sequence[Any], name: str, where: Where) -> Ragged:
    """Lists of ids >= 0 (None: no list). Raises: TraceError naming the first row with anything else."""
    expected = "a list of integers >= 0"
    if not set(map(type, values)) <= {list, type(None)}:
        i = next(i for i, v in enumerate(values) if v is not None and not isinstance(v, list))
        bad(where(i), name, values[i], expected)
    lists = [v or () for v in values]
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, lists), dtype=np.int64, count=len(lists)), out=offsets[1:])
    flat = list(chain.from_iterable(lists))

    def where_id(k: int) -> str:
        return where(int(np.searchsorted(offsets, k, side="right")) - 1)

    return Ragged(integers(flat, name, where_id, 0, MAX_ID), offsets)


def texts(values: Sequence[Any], name: str, where: Where, shared: dict[str, str]) -> list[str | None]:
    """Strings or integers (kept as text), None where absent; equal strings become one object through `shared`."""
    if not set(map(type, values)) <= {str, type(None)}:
        values = [_text(v, name, where, i) for i, v in enumerate(values)]
    return [v if v is None else shared.setdefault(v, v) for v in values]


def _text(value: Any, name: str, where: Where, i: int) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    bad(where(i), name, value, "a string")


def optional_integers(values: Sequence[Any], name: str, where: Where, low: int) -> list[int | None]:
    """Whole numbers >= low, None where absent. Raises: TraceError naming the first other one."""
    kept = [i for i, v in enumerate(values) if v is not None]
    column = integers([values[i] for i in kept], name, lambda k: where(kept[k]), low).tolist()
    return _spread(column, kept, len(values))


def optional_times(values: Sequence[Any], name: str, where: Where, unit_s: float) -> list[float | None]:
    """Numbers >= 0 in units of `unit_s` as seconds, None where absent."""
    kept = [i for i, v in enumerate(values) if v is not None]
    column = times([values[i] for i in kept], name, lambda k: where(kept[k]), unit_s).tolist()
    return _spread(column, kept, len(values))


def _spread(column: list[Any], kept: list[int], n: int) -> list[Any]:
    if len(kept) == n:
        return column
    out: list[Any] = [None] * n
    for i, value in zip(kept, column, strict=True):
        out[i] = value
    return out


def observations(values: Sequence[Any], name: str, where: Where) -> list[dict[str, Any] | None]:
    """Measured values {ttft_ms, e2e_ms, itl_ms[], cached_tokens, ...}, None where absent."""
    for i, value in enumerate(values):
        if value is None:
            continue
        if not isinstance(value, dict):
            bad(where(i), name, value, "an object with ttft_ms, e2e_ms, itl_ms, cached_tokens")
        for key in ("ttft_ms", "e2e_ms"):
            _number(value.get(key), f"{name}.{key}", where, i)
        gaps = value.get("itl_ms")
        if gaps is not None and not isinstance(gaps, list):
            bad(where(i), f"{name}.itl_ms", gaps, "a list of numbers >= 0")
        for gap in gaps or ():
            _number(gap, f"{name}.itl_ms", where, i, absent=False)
        cached = value.get("cached_tokens")
        if cached is not None and (whole(cached) is None or cached < 0):
            bad(where(i), f"{name}.cached_tokens", cached, "an integer >= 0")
    return list(values)


def _number(value: Any, name: str, where: Where, i: int, *, absent: bool = True) -> None:
    if value is None and absent:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        bad(where(i), name, value, "a number >= 0")
