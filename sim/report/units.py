"""Numbers for people: seconds, counts and shares in few characters."""

from __future__ import annotations


def seconds_text(seconds: float | None) -> str:
    """A duration with three significant digits and a fitting unit; `–` for None.

    >>> seconds_text(0.01234), seconds_text(2.5), seconds_text(90e-6)
    ('12.3 ms', '2.50 s', '90.0 µs')
    """
    if seconds is None:
        return "–"
    unit, scale = _unit(seconds)
    return f"{_three(seconds / scale)} {unit}"


def _unit(seconds: float) -> tuple[str, float]:
    """The unit in which a duration is at least 1, with its seconds; µs below, s for 0."""
    if seconds == 0 or abs(seconds) >= 1:
        return "s", 1.0
    return ("ms", 1e-3) if abs(seconds) >= 1e-3 else ("µs", 1e-6)


def signed_text(seconds: float) -> str:
    """A difference of durations, with its sign.

    >>> signed_text(0.012), signed_text(-2.0)
    ('+12.0 ms', '-2.00 s')
    """
    return f"+{seconds_text(seconds)}" if seconds > 0 else seconds_text(seconds)


def signed_together(*seconds: float) -> tuple[str, ...]:
    """Differences in the unit of the first (of the largest, where that is 0); the unit stands with the first.

    >>> signed_together(0.012, 0.0005, 0.0236)
    ('+12.0 ms', '+0.50', '+23.6')
    """
    unit, scale = _unit(seconds[0] or max(seconds, key=abs))
    texts = [f"{'+' if s > 0 else ''}{_three(s / scale)}" for s in seconds]
    return (f"{texts[0]} {unit}", *texts[1:])


def _three(value: float) -> str:
    """Three significant digits (two below 0.1) without an exponent.

    >>> _three(1234.5), _three(12.04), _three(0.5), _three(0.0123)
    ('1,234', '12.0', '0.50', '0.012')
    """
    size = abs(value)
    if size >= 99.95 or value == 0:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.1 else f"{value:.2g}"


def rate_text(value: float | None) -> str:
    """A rate or count with three significant digits and thousands separators; `–` for None."""
    return "–" if value is None else _three(value)


def share_text(fraction: float | None) -> str:
    """A fraction as a percentage; `–` for None.

    >>> share_text(0.1234), share_text(0.0004)
    ('12.3 %', '0.04 %')
    """
    return "–" if fraction is None else f"{_three(fraction * 100)} %"


def times_text(ratio: float) -> str:
    """A ratio as a factor.

    >>> times_text(1.234), times_text(0.05), times_text(21800.0)
    ('1.23×', '0.05×', '21,800×')
    """
    return f"{_three(ratio)}×" if ratio >= 0.01 else f"1/{_three(1 / ratio)}"
