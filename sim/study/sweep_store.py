"""Results of points in files named by their address: each is there whole or not at all, whatever is killed when."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
from stepline.traces.errors import ConfigError

OPTIONS = orjson.OPT_SORT_KEYS | orjson.OPT_INDENT_2


class Store:
    """A directory of results, `points/<address>.json`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.points = directory / "points"
        try:
            self.points.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out: {str(directory)!r} cannot be written: {error.strerror}") from None

    def get(self, address: str) -> dict[str, Any] | None:
        """The result at an address, None if there is none (or none that is whole)."""
        try:
            found: dict[str, Any] = orjson.loads((self.points / f"{address}.json").read_bytes())
        except (FileNotFoundError, orjson.JSONDecodeError):
            return None
        return found

    def put(self, address: str, result: Mapping[str, Any]) -> None:
        """Write a result."""
        write_atomic(self.points / f"{address}.json", orjson.dumps(result, option=OPTIONS) + b"\n")


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that it exists whole or not at all, also after a crash of the machine."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
