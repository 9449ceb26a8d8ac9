"""A description as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .wording import counted

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_COLUMNS = ("mean", "p10", "p50", "p90", "p99", "max")


def tables(figures: Mapping[str, Any]) -> list[RenderableType]:
    """The figures of `describe` as rich renderables, in reading order."""
    from rich.text import Text

    parts: list[RenderableType] = [Text(_headline(figures), style="bold"), _distributions(figures)]
    if figures["windows"]:
        parts.append(_windows(figures["windows"]))
    parts.append(_dependence(figures["dependence"]))
    parts += [Text(line) for line in _sentences(figures)]
    return parts


def number(value: float | None) -> str:
    """A number with four significant digits and no exponent, `–` for None.

    >>> number(1154.697), number(0.00123456), number(14050), number(None)
    ('1,155', '0.001235', '14,050', '–')
    """
    if value is None:
        return "–"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}" if value == 0 or abs(value) >= 1e-4 else f"{value:.1e}"


def _headline(figures: Mapping[str, Any]) -> str:
    rate = figures["rate"]
    text = f"{figures['source']} ({figures['trace_format'] or 'in memory'}): "
    text += f"{counted(figures['requests'], 'request')} in {number(figures['span_s'])} s"
    if rate["requests_per_s"] is None:
        return f"{text}, all at once"
    return (
        f"{text}, {number(rate['requests_per_s'])} requests/s, {number(rate['input_tokens_per_s'])} input and "
        f"{number(rate['output_tokens_per_s'])} output tokens/s"
    )


def _distributions(figures: Mapping[str, Any]) -> Table:
    table = _table("", *_COLUMNS)
    rows = [
        ("input tokens", figures["input_tokens"]),
        ("output tokens", figures["output_tokens"]),
        ("gap between arrivals, s", figures["gap_s"]),
    ]
    if figures["reuse"]:
        rows.append(("time to reuse of a block, s", figures["reuse"]["reuse_gap_s"]))
    if figures["sessions"]:
        rows += [
            ("turns of a session", figures["sessions"]["turns"]),
            ("gap between turns, s", figures["sessions"]["turn_gap_s"]),
            ("delay before a turn, s", figures["sessions"]["delay_s"]),
        ]
    for name, spread in rows:
        if spread is not None:
            table.add_row(name, *(number(spread.get(column)) for column in _COLUMNS))
    return table


def _windows(windows: list[Mapping[str, float]]) -> Table:
    table = _table("arrivals in windows of", "var/mean (Poisson: 1)", "empty windows", "most arrivals")
    for window in windows:
        table.add_row(
            f"{window['width_s']:g} s",
            number(window["dispersion"]),
            f"{window['empty_frac']:.1%}",
            number(window["peak"]),
        )
    return table


def _dependence(dependence: Mapping[str, Any]) -> Table:
    rho = dependence["rank_correlation"]
    title = f"output by input (rho {number(rho)})" if rho is not None else "output by input"
    table = _table(title, "requests", "output p50", "output p90")
    for row in dependence["output_by_input"]:
        table.add_row(
            f"{row['input_from']:,} – {row['input_below'] - 1:,}",
            number(row["requests"]),
            number(round(row["output_p50"])),
            number(round(row["output_p90"])),
        )
    return table


def _sentences(figures: Mapping[str, Any]) -> list[str]:
    out = []
    if reuse := figures["reuse"]:
        sizes = ", ".join(str(n) for n in reuse["block_sizes"])
        out.append(
            f"reuse: {reuse['ideal_hit_token_frac']:.1%} of input tokens could come from an unlimited prefix cache; "
            f"{reuse['distinct_blocks']:,} distinct of {counted(reuse['blocks'], 'block')} of {sizes} tokens"
        )
    if sessions := figures["sessions"]:
        out.append(
            f"sessions: {sessions['sessions']:,}; {sessions['shrinking_turn_frac']:.1%} of later turns have a shorter "
            "prompt than the turn before"
        )
    if figures["columns"]:
        present = (f"{name} ({n:,})" for name, n in figures["columns"].items())
        out.append(f"optional fields: {', '.join(present)}")
    return out


def _table(first: str, *others: str) -> Table:
    from rich import box
    from rich.table import Table

    # a narrow terminal folds names, never numbers
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right", no_wrap=True)
    return table
