"""Writing a trace in any format that has a writer: all of it or nothing."""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import orjson

from .drafts import drafted, is_stream
from .errors import ConfigError, TraceError
from .formats import Extra, Format, WriteState, format_named, formats
from .sidecar import sidecar_path
from .trace import OPTIONAL_COLUMNS, Trace

_NOT_KEPT = ("trace_format", "rows", "span_ms", "sha256", "time_unit", "block_size", "version")
_ZSTD_LEVEL = 10
_ROWS = 65_536


def write_trace(
    trace: Trace | Iterable[Trace],
    path: str | Path,
    trace_format: str = "native",
    *,
    extras: Iterable[Extra | None] = (),
) -> dict[str, int]:
    """Write `trace` (or its consecutive chunks) to `path`; `.gz` and `.zst` compress.

    The file appears whole or not at all. Native traces get their sidecar `NAME.meta.json` beside them. `extras`:
    unknown keys of each chunk, kept by the native format only. Returns how many rows lost each column that the
    format cannot hold (empty: nothing was lost).

    Raises: ConfigError for a format without a writer; TraceError where `path` cannot be written or the block sizes
    of the trace do not fit the format's.
    """
    target = writable_format(trace_format)
    chunks = _pieces(trace) if isinstance(trace, Trace) else iter(trace)
    state, lost = WriteState(), dict[str, int]()
    digest, span_s = hashlib.sha256(), [0.0, 0.0]
    more = iter(extras)
    with replacing(Path(path)) as out:
        for chunk in chunks:
            if not state.rows:
                state.meta = dict(chunk.meta)
                span_s[0] = float(chunk.arrival_s[0]) if len(chunk) else 0.0
            extra = next(more, None)
            data = target.write(state, chunk, extra)  # type: ignore[misc] # writable_format has checked it
            digest.update(data)
            out.write(data)
            state.rows += len(chunk)
            state.meta |= chunk.meta
            span_s[1] = float(chunk.arrival_s[-1]) if len(chunk) else span_s[1]
            _count_lost(lost, target, chunk, extra)
        if not state.rows:
            raise TraceError(f"{path}: nothing to write: the trace has no requests")
        if target.name == "native" and not is_stream(Path(path)):
            _write_sidecar(path, state, digest.hexdigest(), span_s[1] - span_s[0])
    return lost


def writable_format(name: str) -> Format:
    """The format called `name`. Raises: ConfigError where there is none or it can only be read."""
    target = format_named(name, "--to")
    if target.write is None:
        able = ", ".join(f.name for f in formats() if f.write)
        raise ConfigError(f"--to: got {name!r}, which can only be read; expected one of {able}")
    return target


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the block ends without an error, and vanishes otherwise."""
    try:
        with drafted(path) as draft, draft.open("wb") as raw, _compressed(raw, path.name) as out:
            yield out
    except OSError as problem:
        raise TraceError(f"{path}: cannot be written ({problem.strerror or problem})") from None


@contextmanager
def _compressed(raw: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    if name.endswith(".gz"):
        # No name and no time in the header: the same rows make the same bytes.
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as packed:
            yield packed  # type: ignore[misc] # write is all that is asked of it
    elif name.endswith(".zst"):
        import zstandard

        with zstandard.ZstdCompressor(level=_ZSTD_LEVEL).stream_writer(raw, closefd=False) as packed:
            yield packed
    else:
        yield raw


def _pieces(trace: Trace) -> Iterator[Trace]:
    if len(trace) <= _ROWS:
        yield trace
        return
    for start in range(0, len(trace), _ROWS):
        yield trace.take(np.arange(start, min(start + _ROWS, len(trace))))


def _write_sidecar(path: str | Path, state: WriteState, sha256: str, span_s: float) -> None:
    meta: dict[str, Any] = {"version": 1, "time_unit": "ms"}
    if state.block_size is not None:
        meta["block_size"] = state.block_size
    meta |= {k: v for k, v in state.meta.items() if k not in _NOT_KEPT}
    meta |= {"rows": state.rows, "span_ms": round(span_s * 1e3, 6), "sha256": sha256}
    with replacing(sidecar_path(path)) as out:
        out.write(orjson.dumps(meta, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))


def _count_lost(lost: dict[str, int], target: Format, chunk: Trace, extra: Extra | None) -> None:
    def add(name: str, n: int) -> None:
        if n and name not in target.holds:
            lost[name] = lost.get(name, 0) + n

    for name in OPTIONAL_COLUMNS:
        if name in chunk.columns and name not in target.holds:
            add(name, sum(1 for v in chunk.columns[name] if v is not None))
    for name in ("hash_ids", "output_hash_ids"):
        if (ids := getattr(chunk, name)) is not None:
            add(name, int((np.diff(ids.offsets) > 0).sum()))
    if extra is not None:
        add("extra", sum(1 for keys in extra if keys))
