"""A wide table in a narrow terminal: cut into tables of fewer columns, so that none is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table

_ANY_WIDTH = 10_000  # columns, wider than any table


@dataclass(frozen=True, slots=True)
class Fitting:
    """`build(items)` is a table with a column an item; as many stand beside each other as the terminal holds."""

    items: Sequence[Any]
    build: Callable[[Sequence[Any]], Table]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The tables, one below the other."""
        left = self.items
        wide = options.update(max_width=_ANY_WIDTH)
        while left:
            n = len(left)
            while n > 1 and Measurement.get(console, wide, self.build(left[:n])).maximum > options.max_width:
                n -= 1
            yield self.build(left[:n])
            left = left[n:]
