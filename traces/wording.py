"""Numbers in sentences."""

from __future__ import annotations


def counted(n: int, noun: str, of: int | None = None) -> str:
    """A number and what it counts, in the singular for one; `of` so many in all, which then decides.

    >>> counted(1, "request"), counted(1200, "request"), counted(1, "request", of=2)
    ('1 request', '1,200 requests', '1 of 2 requests')
    """
    whole = n if of is None else of
    share = "" if of is None else f" of {of:,}"
    return f"{n:,}{share} {noun}{'' if whole == 1 else 's'}"
