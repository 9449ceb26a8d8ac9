"""What a trace format is, and what its reader and writer hand over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from ..errors import TraceError
from ..key_tables import KeyTable
from ..random_streams import stream
from ..trace import Trace
from ..wording import counted
from .document import why
from .source import Source

Extra = Sequence[dict[str, Any]]
"""One dict a row: the keys of that row which the product gives no meaning."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of a file: their columns, line numbers int64 (n,), and unknown keys if they are kept.

    The trace of a chunk may be unsorted; its `block_size` is 0 where the row itself states none.
    """

    trace: Trace
    lines: NDArray[np.int64]
    extra: Extra | None = None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What a caller may ask of any reader.

    `hash_block_size`: tokens per hash id where neither row nor sidecar states it. `keep_extra`: keep unknown keys.
    `request_rate`: requests/s of Poisson arrivals drawn with `seed` for formats without arrival times.
    `tokenizer`: path of a `tokenizer.json` that counts the tokens of logs which hold only text.
    """

    hash_block_size: int | None = None
    keep_extra: bool = False
    request_rate: float | None = None
    seed: int = 0
    tokenizer: str | None = None


@dataclass(slots=True)
class Context:
    """State of one reading: options, the sidecar, counted remarks, shared strings, the clock of each session."""

    name: str
    options: ReadOptions = field(default_factory=ReadOptions)
    meta: dict[str, Any] = field(default_factory=dict)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    remarks: dict[str, None] = field(default_factory=dict)
    strings: dict[str, str] = field(default_factory=dict)
    session_clock: KeyTable = field(default_factory=lambda: KeyTable(at_s=np.float64))
    origin: Any = None
    timeless: bool = False
    _last_s: float = 0.0
    _draws: np.random.Generator | None = None

    def draw_arrivals(self, n: int) -> NDArray[np.float64]:
        """Arrivals in seconds of the next `n` rows of a format without times: Poisson at `request_rate`, or all 0."""
        self.timeless = True
        rate = self.options.request_rate
        if rate is None:
            self.remark("no arrival times: all requests arrive at 0; --request-rate X draws Poisson arrivals")
            return np.zeros(n)
        if self._draws is None:
            self._draws = stream(self.options.seed, "request-rate")
        arrival_s = self._last_s + np.cumsum(-np.log1p(-self._draws.random(n)) / rate)
        self._last_s = float(arrival_s[-1]) if n else self._last_s
        return np.asarray(arrival_s, dtype=np.float64)

    def count(self, noun: str, what: str, n: int) -> None:
        """Add `n` to those (in the singular: "row") of which something is to be said: "without tokens left out"."""
        if n:
            self.counts[noun, what] += n

    def remark(self, text: str) -> None:
        """Note something once for the whole file."""
        self.remarks[text] = None

    def warnings(self) -> tuple[str, ...]:
        """Everything noticed so far, as sentences."""
        return (*self.remarks, *(f"{counted(n, noun)} {what}" for (noun, what), n in self.counts.items()))


_OPEN = (b"{", b"[", b",", b":")
"""How a line ends that the JSON document continues behind."""


class Sample:
    """The beginning of a file, as the formats' sniffers look at it."""

    def __init__(self, source: Source) -> None:
        self._source = source
        lines, numbers = source.head().filled()
        if not lines:
            raise TraceError(f"{source.name}: only blank lines, expected at least one request")
        self.first, self.line = lines[0], numbers[0]
        self.second = lines[1] if len(lines) > 1 else b""
        self.text = b"\n".join(lines[:50])

    @cached_property
    def value(self) -> Any:
        """The JSON value of the first line, or None where that line alone is no JSON."""
        try:
            return orjson.loads(self.first)
        except orjson.JSONDecodeError:
            return None

    @property
    def problem(self) -> str:
        """Why the first line alone is no JSON."""
        try:
            orjson.loads(self.first)
        except orjson.JSONDecodeError as problem:
            return f"{why(problem)} (column {problem.colno})"
        return ""

    @property
    def row(self) -> dict[str, Any]:
        """The first line as a JSON object ({}: it is none)."""
        return self.value if isinstance(self.value, dict) else {}

    @cached_property
    def header(self) -> tuple[str, ...]:
        """The first line as CSV column names, lower case and stripped (empty: it is JSON)."""
        if self.value is not None or self.is_json:
            return ()
        text = self.first.decode("utf-8", "replace").lower()
        return tuple(name.strip().strip('"').strip() for name in text.split(","))

    @property
    def document(self) -> Any:
        """The value of the file as one JSON document (None: it is lines, or CSV).

        A document over several lines is read whole here. Raises: TraceError where it is not JSON.
        """
        if isinstance(self.value, dict | list):
            return self.value
        if not self.is_json or (
            self.second.lstrip().startswith(b"{") and not self.first.rstrip().endswith(_OPEN)
        ):
            return None
        return self._source.document().value

    @property
    def is_json(self) -> bool:
        """Does the file begin like JSON?"""
        return self.first.lstrip().startswith((b"{", b"["))


Reader = Callable[[Source, Context], Iterator[Chunk]]


@dataclass(slots=True)
class WriteState:
    """What a writer remembers between chunks: rows so far, the common block size, the wall-clock origin."""

    rows: int = 0
    block_size: int | None = None
    meta: dict[str, Any] = field(default_factory=dict)


Writer = Callable[[WriteState, Trace, Extra | None], bytes]


@dataclass(frozen=True, slots=True)
class Format:
    """One trace format: its names, how it is recognised, read and written.

    `holds`: the optional columns of `Trace` (with `hash_ids`, `output_hash_ids`) that `write` keeps; `extra` in it
    means unknown keys are kept too. `hash_block_size`: tokens per id where the format itself fixes it.
    `absolute`: times are a wall clock; the reader moves the first request to 0. `sidecar`: `NAME.meta.json` is read.
    """

    name: str
    about: str
    sniff: Callable[[Sample], bool]
    read: Reader
    write: Writer | None = None
    holds: frozenset[str] = frozenset()
    aliases: tuple[str, ...] = ()
    hash_block_size: int | None = None
    absolute: bool = False
    sidecar: bool = False
