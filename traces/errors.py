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
    >>> nearest("h10", ["a10", "h100-pcie", "h100-sxm"])
    "; did you mean 'h100-pcie' or 'h100-sxm'? (known: a10, h100-pcie, h100-sxm)"
    """
    names = sorted(known)
    meant = [repr(n) for n in closest(name, names)]
    listing = f"(known: {', '.join(names)})"
    if not meant:
        return f" {listing}"
    either = " or ".join([", ".join(meant[:-1]), meant[-1]] if len(meant) > 1 else meant)
    return f"; did you mean {either}? {listing}"


MOST_MEANT = 3
"""So many names that begin with what was typed are all suggested."""


def closest(name: str, known: Iterable[str]) -> list[str]:
    """The names that were probably meant: those that begin with `name`, or else the one spelt most like it, if any."""
    typed = name.lower()
    names = {known_name.lower(): known_name for known_name in known}
    begun = [n for n in names if typed and n.startswith(typed)]
    if len(begun) <= MOST_MEANT and begun:
        return [names[n] for n in begun]
    return [
        names[n] for n in difflib.get_close_matches(typed, begun or names, n=1, cutoff=0.0 if begun else 0.5)
    ]
