"""The `simulate` command: find the verb, run it, turn errors into exit codes."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from stepline.traces.errors import ConfigError, InputError, PolicyError, nearest

VERBS = {
    "compare": "compare settings, with replications",
    "plan": "how many GPUs, which, at what price",
    "sweep": "many runs from a table of points, resumable",
    "report": "one HTML file from a run directory",
    "trace": "describe, check, convert or generate traces",
    "validate": "replay measured runs and print the errors",
    "models": "list built-in models",
    "gpus": "list built-in GPUs",
    "policies": "list policies",
    "engines": "list engine profiles",
    "completion": "a script that completes words in your shell",
}
"""Verb: what it does. A verb exists when `stepline.sim.cli.<verb>` does; its `main(argv)` returns an exit code."""

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
BROKEN_PIPE = 141  # 128 + SIGPIPE
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when nothing more can be written: no mistake of ours."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 wrong input (one line on stderr), 130 interrupted.

    An `InvariantError`, and anything else that is a bug, keeps its traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except (InputError, PolicyError) as error:
        print(f"simulate: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("simulate: interrupted, nothing written", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        _let_go_of_stdout()
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        print(f"simulate: cannot be written: {os.strerror(error.errno or 0)}", file=sys.stderr)
        _let_go_of_stdout()
        return 2


def _let_go_of_stdout() -> None:
    """Whatever is still buffered has nowhere to go."""
    with suppress(OSError):  # where stdout is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def verbs() -> dict[str, str]:
    """The verbs that are installed, with what they do."""
    return {verb: text for verb, text in VERBS.items() if _exists(verb)}


def _run(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first.startswith("-"):
        from . import run

        return run.main(arguments or ["--help"])
    known = verbs()
    if first not in known:
        raise ConfigError(f"unknown verb {first!r}{nearest(first, known)}; a run takes options: --trace FILE")
    module = importlib.import_module(f"stepline.sim.cli.{first}")
    code: int = module.main(arguments[1:])
    return code


def _exists(verb: str) -> bool:
    return importlib.util.find_spec(f"stepline.sim.cli.{verb}") is not None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main())
