"""`simulate models`: see `catalogue`."""

from __future__ import annotations

from collections.abc import Sequence

from . import catalogue


def main(argv: Sequence[str]) -> int:
    """List models; returns the exit code."""
    return catalogue.main(["models", *argv])
