"""`simulate engines`: see `catalogue`."""

from __future__ import annotations

from collections.abc import Sequence

from . import catalogue


def main(argv: Sequence[str]) -> int:
    """List engines; returns the exit code."""
    return catalogue.main(["engines", *argv])
