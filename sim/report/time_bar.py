"""Where the GPU time of a run went, as one bar: what an engineer looks at first (an HTML fragment)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .side_by_side import TIME_SHARES, time_text
from .units import share_text

_LEAST_FRAC = 0.0005
"""Below this a part is no pixel wide."""


def time_bar(summary: Mapping[str, Any]) -> str:
    """The shares of GPU time side by side, each with its name where the style sheet finds room; all as a tooltip."""
    shares = summary["time_frac"]
    parts = "".join(_part(label, key, shares[key]) for label, key in TIME_SHARES if _is_seen(summary, key))
    text = escape(f"GPU time: {time_text(summary)}")
    return f'<div class="time-bar" role="img" aria-label="{text}" title="{text}">{parts}</div>'


def _part(label: str, key: str, frac: float) -> str:
    return f'<span class="t-{key}" style="flex:{frac:.5f}"><b>{label} {share_text(frac)}</b></span>'


def _is_seen(summary: Mapping[str, Any], key: str) -> bool:
    return bool(summary["time_frac"].get(key, 0.0) >= _LEAST_FRAC)


def time_key(summaries: Sequence[Mapping[str, Any]]) -> str:
    """What the colours in the bars of these runs mean."""
    items = "".join(
        f'<span><i class="t-{key}"></i>{label}</span>'
        for label, key in TIME_SHARES
        if any(_is_seen(summary, key) for summary in summaries)
    )
    return f'<p class="dim time-key">GPU time of the whole run: {items}</p>'
