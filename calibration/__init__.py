"""Kernel timings, their fits and the fitted constants that `stepline.sim` finds by entry point."""

from pathlib import Path


def constants_dir() -> Path:
    """Directory of the committed calibration JSONs (entry point of `stepline.calibrations`)."""
    return Path(__file__).parent / "constants"
