"""Numbers for people: seconds, counts and shares in few characters."""

from __future__ import annotations


def seconds_text(seconds: float | None) -> str:
    """A duration with three significant digits and a fitting unit; `–` for None.

    >>> seconds_text(0.01234), seconds_text(2.5), seconds_text(90e-6)
    ('12.3 ms', '2.5 s', '90 µs')
    """
    if seconds is None:
        return "–"
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{_three(seconds * 1e6)} µs" if seconds else "0 s"


def _three(value: float) -> str:
    """Three significant digits without an exponent; no trailing zeros.

    >>> _three(1234.5), _three(12.04), _three(0.5)
    ('1,234', '12', '0.5')
    """
    if abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    text = f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return text.rstrip("0").rstrip(".")


def rate_text(value: float | None) -> str:
    """A rate or count with three significant digits and thousands separators; `–` for None."""
    return "–" if value is None else _three(value)


def share_text(fraction: float | None) -> str:
    """A fraction as a percentage; `–` for None.

    >>> share_text(0.1234), share_text(0.0004)
    ('12.3 %', '0.04 %')
    """
    return "–" if fraction is None else f"{_three(fraction * 100)} %"
