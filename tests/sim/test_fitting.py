"""Wide tables in narrow terminals: every column is shown, whole."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table
from stepline.sim.report.fitting import Fitting

ITEMS = [f"column-{i:02}" for i in range(9)]


def build(items):
    table = Table(box=None)
    table.add_column("name", no_wrap=True)
    for item in items:
        table.add_column(item, no_wrap=True)
    table.add_row("row", *(f"<{item}>" for item in items))
    return table


@pytest.mark.parametrize(("width", "tables"), [(20, 9), (45, 3), (80, 2), (200, 1)])
def test_no_column_is_lost_or_cut(width, tables):
    console = Console(width=width, file=io.StringIO())
    console.print(Fitting(ITEMS, build))
    lines = console.file.getvalue().splitlines()
    text = "\n".join(lines)
    assert all(f"<{item}>" in text for item in ITEMS)
    assert max(map(len, lines)) <= width
    assert text.count("row") == text.count("name") == tables
