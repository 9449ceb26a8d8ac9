"""An argument parser whose errors are one line, with the nearest flag, and cost no usage text."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

from stepline.traces.errors import ConfigError, InvariantError, nearest


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` that raises `ConfigError`, knows no abbreviations and suggests flags."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**options)

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError` in place of printing usage and exiting."""
        raise ConfigError(message.removeprefix("argument "))

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, or name the first unknown argument and the flag it resembles."""
        if _capturing.get():
            raise _CapturedError(self)
        found, unknown = self.parse_known_args(_joined(args), namespace)
        if unknown:
            self.error(self._unknown(unknown[0]))
        return found

    def _unknown(self, argument: str) -> str:
        if not argument.startswith("-"):
            return f"unexpected argument {argument!r}; options start with --, e.g. --trace {argument}"
        name = argument.split("=", 1)[0]
        hint = nearest(name, self.flags()).split(" (known:", 1)[0]
        return f"unknown option {name!r}{hint}"

    def flags(self) -> list[str]:
        """All long flags."""
        return [s for a in self._actions for s in a.option_strings if s.startswith("--")]


_capturing = ContextVar("capturing", default=False)


class _CapturedError(Exception):
    """Carries a parser out of a verb."""


def captured(main: Callable[[list[str]], int]) -> Parser:
    """The parser that a verb's `main` makes, without running the verb."""
    token = _capturing.set(True)
    try:
        main(["--captured"])
    except _CapturedError as found:
        parser: Parser = found.args[0]
        return parser
    finally:
        _capturing.reset(token)
    raise InvariantError("the verb parsed nothing")


VERBATIM = "--vllm-args"
"""A flag whose value is itself made of flags."""


def _joined(args: Any) -> Any:
    """Arguments with the value of `VERBATIM` joined to it, so that its own dashes are not taken for flags."""
    if args is None or VERBATIM not in args[:-1]:
        return args
    place = list(args).index(VERBATIM)
    return [*args[:place], f"{VERBATIM}={args[place + 1]}", *args[place + 2 :]]


def integer(text: str) -> int:
    """An integer, also written 8k (thousand), 10_000 or 1e6. Raises `argparse.ArgumentTypeError`."""
    try:
        scale = 1000 if text.lower().endswith("k") else 1
        number = (
            float(text[:-1] if scale > 1 else text) * scale if scale > 1 or "e" in text.lower() else int(text)
        )
        if number != int(number):
            raise ValueError
        return int(number)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected an integer") from None


def number(text: str) -> float:
    """A finite number. Raises `argparse.ArgumentTypeError`."""
    try:
        value = float(text)
        if value != value or value in (float("inf"), float("-inf")):
            raise ValueError
        return value
    except ValueError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number") from None


def gibibytes(text: str) -> float:
    """A finite number of GiB, without a unit, as vLLM's flags take it. Raises `argparse.ArgumentTypeError`."""
    try:
        return number(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of GiB, without a unit") from None


def listing(texts: Sequence[str] | None) -> list[str]:
    """The items of a repeated or comma-separated flag."""
    return [item.strip() for text in texts or () for item in text.split(",") if item.strip()]


def switch(text: str) -> bool:
    """`true` or `false`. Raises `argparse.ArgumentTypeError`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected true or false")
    return text.lower() == "true"
