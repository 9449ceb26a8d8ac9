"""The one tree of errors: a user's mistake is an `InputError` (exit 2, no traceback), ours an `InvariantError`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SteplineError(Exception):
    """Root of every error that stepline raises on purpose."""


class InputError(SteplineError):
    """The user's input is wrong; the message says where, which field, what was got, what is expected."""


class ConfigError(InputError):
    """A flag, spec or file of settings is wrong."""


class TraceError(InputError):
    """A trace file is wrong; the message starts with `file:line`."""


class CalibrationError(InputError):
    """A timing table or calibration file is wrong or does not suffice."""


class PolicyError(SteplineError):
    """A policy asked for something a replica cannot do; names policy, step and sequence."""


class InvariantError(SteplineError):
    """The simulator contradicts itself: a bug of ours, always shown with its traceback."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names exist and which one was probably meant.

    >>> nearest("chunkd", ["chunked", "static"])
    "; did you mean 'chunked'? (known: chunked, static)"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    hint = next((n for n in names if close and n.lower() == close[0]), None)
    listing = f"(known: {', '.join(names)})"
    return f"; did you mean {hint!r}? {listing}" if hint else f" {listing}"
