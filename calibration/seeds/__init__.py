"""`calibrate seeds`: the figures of five teaching texts, recomputed; the accounting and the questions they pose."""

from __future__ import annotations

from .cli import add_arguments, main, run

__all__ = ["add_arguments", "main", "run"]
