"""`simulate gpus`: see `catalogue`."""

from __future__ import annotations

from collections.abc import Sequence

from . import catalogue


def main(argv: Sequence[str]) -> int:
    """List gpus; returns the exit code."""
    return catalogue.main(["gpus", *argv])
