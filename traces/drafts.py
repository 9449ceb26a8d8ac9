"""Files that stand at their place whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_DEVICES = (Path("/dev"), Path("/dev/fd"))


def is_stream(path: Path) -> bool:
    """True for what has no content of its own to replace: a device, a pipe, standard output."""
    return path.exists() and (not path.is_file() or path.parent in _DEVICES)


@contextmanager
def drafted(path: Path) -> Iterator[Path]:
    """Where to write what shall stand at `path`: a file beside it, moved there when the block ends without an error.

    A stream is written itself; a link keeps its place, and what it points to is replaced.
    """
    if is_stream(path):
        yield path
        return
    target = path.resolve()
    draft = target.with_name(f".{os.getpid()}-{target.name}")
    try:
        yield draft
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
