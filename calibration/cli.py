"""The `calibrate` command: fit, validate, measure, report, seeds. Each verb is imported when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence

from stepline.traces.errors import InputError, nearest

VERBS: dict[str, tuple[str, str]] = {
    "measure": ("stepline.calibration.measure.cli:main", "time kernels on this machine's GPU (or CPU)"),
    "fit": ("stepline.calibration.fit_cli:main", "fit constants to a table of timings"),
    "validate": ("stepline.calibration.validate_cli:main", "score the fits on shapes they never saw"),
    "report": ("stepline.calibration.report_cli:main", "draw rooflines, scatter and residual maps"),
    "seeds": ("stepline.calibration.seeds:main", "recompute the teaching texts' figures"),
}
"""Verb -> (`module:function` taking the remaining arguments, one line of help)."""

BROKEN_PIPE = 141
"""Exit status as shells report it: 128 + SIGPIPE."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run `calibrate VERB ...`; returns the exit status (2 for a user's mistake, which never shows a traceback)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    try:
        if arguments[0] not in VERBS:
            raise InputError(f"calibrate: unknown verb {arguments[0]!r}{nearest(arguments[0], VERBS)}")
        module, _, function = VERBS[arguments[0]][0].partition(":")
        status = getattr(importlib.import_module(module), function)(arguments[1:])
        sys.stdout.flush()
    except InputError as error:
        print(f"calibrate: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("calibrate: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader went away (`| head`); whatever is still buffered has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return int(status or 0)


def _help() -> str:
    lines = ["usage: calibrate VERB [options]", "", "verbs:"]
    lines += [f"  {verb:10} {text}" for verb, (_, text) in VERBS.items()]
    return "\n".join([*lines, "", "`calibrate VERB --help` shows the options of a verb."])


if __name__ == "__main__":
    sys.exit(main())
