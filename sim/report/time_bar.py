"""Where the GPU time of a run went, as one bar: what an engineer looks at first (an HTML fragment)."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from .side_by_side import TIME_SHARES, time_text
from .units import share_text

_NAMED_FRAC = 0.07
"""From this share on a part's name fits into it on a phone, or is cut off inside it."""

_LEAST_FRAC = 0.0005
"""Below this a part is no pixel wide."""


def time_bar(summary: Mapping[str, Any]) -> str:
    """The shares of GPU time side by side, each with its name where it fits; all of them as a tooltip."""
    shares = summary["time_frac"]
    parts = "".join(
        _part(label, key, shares[key]) for label, key in TIME_SHARES if shares.get(key, 0.0) >= _LEAST_FRAC
    )
    text = escape(f"GPU time: {time_text(summary)}")
    return f'<div class="time-bar" role="img" aria-label="{text}" title="{text}">{parts}</div>'


def _part(label: str, key: str, frac: float) -> str:
    text = f"{label} {share_text(frac)}" if frac >= _NAMED_FRAC else ""
    return f'<span class="t-{key}" style="flex:{frac:.5f}">{escape(text)}</span>'


def time_key() -> str:
    """What the colours of the bars mean."""
    items = "".join(f'<span><i class="t-{key}"></i>{label}</span>' for label, key in TIME_SHARES)
    return f'<p class="dim time-key">GPU time of the whole run: {items}</p>'
