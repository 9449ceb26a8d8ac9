"""Threads of the matrix libraries, which look at their variables once, when NumPy or torch is loaded."""

from __future__ import annotations

import os

THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS")
"""Where BLAS libraries look."""


def set_threads(n: int) -> None:
    """Ask for `n` threads; without effect once NumPy is loaded."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(n)))


def one_thread() -> None:
    """Ask for one thread unless the user said otherwise.

    The grids of the residual layers are solved by many products of a sparse matrix with a short vector: threads that
    wait for each other make them up to 30 times slower on a busy machine.
    """
    for name in THREAD_VARIABLES:
        os.environ.setdefault(name, "1")
