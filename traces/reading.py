"""Reading a trace of any known format: whole, or as a stream of chunks in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .block_sizes import with_block_size
from .errors import ConfigError, TraceError, nearest
from .formats import Chunk, Context, Format, ReadOptions, Source, detect, format_named
from .joining import RowNumbers, concatenate
from .noticing import Noticed
from .sidecar import read_sidecar
from .trace import Trace

ROWS = 65_536
"""Rows of a chunk by default."""

WINDOW = 65_536
"""Rows within which a stream is sorted: a row may stand this far behind its place, not farther."""

EPOCH_S = 1e8
"""First arrivals later than this (three years) are a wall clock, not seconds since the trace began."""


def read_trace(
    path: str | Path, *, trace_format: str | None = None, hash_block_size: int | None = None, **options: Any
) -> Trace:
    """The whole trace at `path`, sorted by arrival (stable), times in seconds, with `warnings` of what was noticed.

    `trace_format` names the format (None: recognised by its first row). `hash_block_size` is the tokens per hash id
    where neither row nor sidecar states it. `options`: `request_rate` and `seed` (Poisson arrivals for formats that
    have no times), `tokenizer` (path of a `tokenizer.json` for logs that hold only text).

    Raises: TraceError (`file:line: field: got ..., expected ...`); ConfigError for a wrong option.
    """
    with closing(Reading(path, trace_format, hash_block_size, **options)) as reading:
        return reading.whole().trace


def iter_trace(
    path: str | Path,
    *,
    trace_format: str | None = None,
    hash_block_size: int | None = None,
    rows: int = ROWS,
    **options: Any,
) -> Iterator[Trace]:
    """The trace at `path` as consecutive chunks of at most `rows` requests, sorted within `WINDOW` rows.

    Memory does not grow with the file, except by what is asked of each session once (its clock). `request_id`
    counts through the file where rows have none. `sha256`, `meta` and `warnings` are complete in the last chunk only.

    Raises: as `read_trace`; UnsortedError too where a row stands more than `WINDOW` rows behind its place.
    """
    for chunk in iter_chunks(path, trace_format, hash_block_size, rows=rows, **options):
        yield chunk.trace


def iter_chunks(
    path: str | Path,
    trace_format: str | None = None,
    hash_block_size: int | None = None,
    *,
    rows: int = ROWS,
    window: int = WINDOW,
    **options: Any,
) -> Iterator[Chunk]:
    """As `iter_trace`, with line numbers and (`keep_extra=True`) unknown keys."""
    if rows < 1:
        raise ConfigError(f"rows: got {rows}, expected an integer >= 1")
    with closing(Reading(path, trace_format, hash_block_size, **options)) as reading:
        yield from reading.stream(rows, window)


class UnsortedError(TraceError):
    """Rows stand too far from their place for a stream; reading the file whole can still sort them."""


class Reading:
    """One pass over one file. Raises: TraceError, ConfigError."""

    def __init__(
        self, path: str | Path, trace_format: str | None, hash_block_size: int | None, **options: Any
    ) -> None:
        known = {f.name for f in fields(ReadOptions)} - {"hash_block_size"}
        for name in options:
            if name not in known:
                raise ConfigError(f"read_trace: unknown option {name!r}{nearest(name, known)}")
        if hash_block_size is not None and hash_block_size < 1:
            raise ConfigError(f"--hash-block-size: got {hash_block_size}, expected an integer >= 1")
        rate = options.get("request_rate")
        if rate is not None and not 0 < rate < float("inf"):
            raise ConfigError(f"--request-rate: got {rate}, expected a number > 0")
        self.source = Source(path)
        self.format: Format = format_named(trace_format) if trace_format else detect(self.source)
        meta = read_sidecar(path) if self.format.sidecar else {}
        self.context = Context(str(path), ReadOptions(hash_block_size=hash_block_size, **options), meta)
        self.noticed = Noticed(self.context, self.format)
        self._emitted = 0
        self._shift_s = 0.0

    def close(self) -> None:
        """Let go of the file."""
        self.source.close()

    def whole(self) -> Chunk:
        """All rows as one sorted chunk."""
        chunk = _sorted(_joined(list(self._checked())))
        return self._finished(self._rebased(chunk), last=True)

    def stream(self, rows: int, window: int) -> Iterator[Chunk]:
        """Sorted chunks of at most `rows` rows; `window` rows are held back for late ones."""
        held: list[Chunk] = []
        latest_s = -np.inf
        for chunk in self._checked():
            _refuse_late(chunk, latest_s, self.context.name, window)
            held.append(chunk)
            if sum(len(c.lines) for c in held) < rows + window:
                continue
            ready = _sorted(_joined(held))
            cut = (len(ready.lines) - window) // rows * rows
            latest_s = float(ready.trace.arrival_s[cut - 1])
            yield from self._pieces(ready, 0, cut, rows)
            held = [_part(ready, cut, len(ready.lines))]
        ready = _sorted(_joined(held))
        yield from self._pieces(ready, 0, len(ready.lines), rows, end=True)

    def _pieces(
        self, ready: Chunk, start: int, stop: int, rows: int, *, end: bool = False
    ) -> Iterator[Chunk]:
        for at in range(start, stop, rows):
            upto = min(at + rows, stop)
            yield self._finished(self._rebased(_part(ready, at, upto)), last=end and upto == stop)

    def _checked(self) -> Iterator[Chunk]:
        """Non-empty chunks in file order, block sizes settled. Raises: TraceError where there is no row at all."""
        empty = True
        for chunk in self.format.read(self.source, self.context):
            if len(chunk.lines):
                empty = False
                sized = with_block_size(chunk, self.context, self.format)
                self.noticed.look(sized.trace)
                yield sized
        if empty:
            left_out = "".join(f" ({note})" for note in self.context.warnings())
            raise TraceError(f"{self.context.name}: no requests{left_out}, expected at least one")

    def _rebased(self, chunk: Chunk) -> Chunk:
        """Wall clocks counted from the first request on."""
        if not self._emitted:
            first_s = float(chunk.trace.arrival_s[0])
            if self.format.absolute or first_s > EPOCH_S:
                self._shift_s = first_s
                self.noticed.rebased(first_s)
        self._emitted += len(chunk.lines)
        if not self._shift_s:
            return chunk
        return replace(chunk, trace=replace(chunk.trace, arrival_s=chunk.trace.arrival_s - self._shift_s))

    def _finished(self, chunk: Chunk, *, last: bool) -> Chunk:
        trace, start = chunk.trace, self._emitted - len(chunk.lines)
        columns = dict(trace.columns)
        if start or not last:
            numbers = RowNumbers(start, len(trace))
            given = columns.get("request_id")
            columns["request_id"] = (
                [v or number for v, number in zip(given, numbers, strict=True)] if given else numbers
            )
        extra: dict[str, Any] = {}
        if last:
            self.noticed.finish(self.source.sha256)
            extra = {"sha256": self.source.sha256, "warnings": self.context.warnings()}
        meta = self.context.meta | {"trace_format": self.format.name}
        return replace(chunk, trace=replace(trace, columns=columns, meta=meta, **extra))


def _joined(chunks: list[Chunk]) -> Chunk:
    if len(chunks) == 1:
        return chunks[0]
    extra = None
    if any(c.extra is not None for c in chunks):
        extra = [more for c in chunks for more in (c.extra or [{}] * len(c.lines))]
    return Chunk(concatenate([c.trace for c in chunks]), np.concatenate([c.lines for c in chunks]), extra)


def _sorted(chunk: Chunk) -> Chunk:
    arrival_s = chunk.trace.arrival_s
    if (arrival_s[1:] >= arrival_s[:-1]).all():
        return chunk
    return _take(chunk, np.argsort(arrival_s, kind="stable"))


def _take(chunk: Chunk, index: NDArray[np.int64]) -> Chunk:
    extra = None if chunk.extra is None else [chunk.extra[i] for i in index.tolist()]
    return Chunk(chunk.trace.take(index), chunk.lines[index], extra)


def _part(chunk: Chunk, start: int, stop: int) -> Chunk:
    if start == 0 and stop == len(chunk.lines):
        return chunk
    return _take(chunk, np.arange(start, stop))


def _refuse_late(chunk: Chunk, latest_s: float, name: str, window: int) -> None:
    late = np.flatnonzero(chunk.trace.arrival_s < latest_s)
    if len(late):
        i = int(late[0])
        behind_s = latest_s - float(chunk.trace.arrival_s[i])
        raise UnsortedError(
            f"{name}:{chunk.lines[i]}: timestamp: {behind_s:g} s behind a row that stands more than {window} rows "
            "before it; streaming sorts within that window only: read the file whole, or sort it"
        )
