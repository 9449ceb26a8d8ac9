"""Parts of a generator by name: `{"kind": "gamma", "shape": 0.5}` becomes `Gamma(shape=0.5)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, TypeVar

from ..errors import ConfigError, nearest

T = TypeVar("T")


class Registry:
    """Dataclasses by `kind`, one table per role; adding a part is one decorated class."""

    def __init__(self, role: str) -> None:
        self.role = role
        self.parts: dict[str, type[Any]] = {}

    def add(self, kind: str) -> Callable[[type[T]], type[T]]:
        """Class decorator: make a dataclass known as `kind`."""

        def register(cls: type[T]) -> type[T]:
            self.parts[kind] = cls
            return cls

        return register

    def build(self, spec: Any, where: str) -> Any:
        """The part that `spec` (a mapping with the key `kind`) describes.

        Nested parts are built by the part itself (`__post_init__`).
        Raises: ConfigError naming `where`, the key, what was got and what is expected.
        """
        if not isinstance(spec, Mapping):
            raise ConfigError(f"{where}: got {spec!r}, expected an object with 'kind' ({self.role})")
        kind = spec.get("kind")
        if kind not in self.parts:
            raise ConfigError(f"{where}: kind: unknown {self.role} {kind!r}{nearest(str(kind), self.parts)}")
        return build_fields(self.parts[str(kind)], {k: v for k, v in spec.items() if k != "kind"}, where)


def build_fields(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """An instance of the dataclass `cls`; unknown, missing and wrong fields raise ConfigError at `where`."""
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]  # cls is a dataclass
    for key in values:
        if key not in fields:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, fields)}")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{where}: {name}: missing")
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
        # A list where a number belongs, an object without a key: wrong at a depth that no check names.
        raise ConfigError(f"{where}: a value of the wrong type or form ({error})") from None


def number(name: str, value: Any, *, low: float, above: bool = False) -> None:
    """Check that field `name` is a finite number >= `low` (> `low` where `above`), else raise ConfigError."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and value < float("inf")
    if not good or value < low or (above and value == low):
        raise ConfigError(f"{name}: got {value!r}, expected a number {'>' if above else '>='} {low:g}")


def ascending(name: str, values: Any, *, strict: bool = False, size: int | None = None) -> None:
    """Check that field `name` is a list of >= 1 numbers in ascending order (of `size`), else raise ConfigError."""
    good = isinstance(values, list | tuple) and len(values) > 0
    good = good and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    good = good and (size is None or len(values) == size)
    if not good or any(b < a or (strict and b == a) for a, b in pairwise(values)):
        long = "" if size is None else f"{size} "
        raise ConfigError(f"{name}: got {str(values)[:60]}, expected {long}ascending numbers")


def fraction(name: str, value: Any) -> None:
    """Check that field `name` lies in 0..1, else raise ConfigError."""
    number(name, value, low=0)
    if value > 1:
        raise ConfigError(f"{name}: got {value!r}, expected a number in 0..1")
