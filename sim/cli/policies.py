"""`simulate policies`: see `catalogue`."""

from __future__ import annotations

from collections.abc import Sequence

from . import catalogue


def main(argv: Sequence[str]) -> int:
    """List policies; returns the exit code."""
    return catalogue.main(["policies", *argv])
