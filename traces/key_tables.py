"""Columns of numbers by name for millions of names: 64-bit digests in sorted arrays in place of dicts of strings."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Keys = NDArray[np.uint64]


def digests(names: Sequence[str]) -> Keys:
    """A 64-bit key per name, uint64 (n,), the same in every process; two of n names meet with chance n^2 / 2^65."""
    packed = b"".join(
        [hashlib.blake2b(n.encode("utf-8", "surrogatepass"), digest_size=8).digest() for n in names]
    )
    return np.frombuffer(packed, dtype="<u8").astype(np.uint64)


class KeyTable:
    """One row of numbers per key: 8 bytes a key and what the columns take, kept sorted by key."""

    def __init__(self, **dtypes: Any) -> None:
        self._keys: Keys = np.zeros(0, dtype=np.uint64)
        self._columns = {name: np.zeros(0, dtype=dtype) for name, dtype in dtypes.items()}

    def __len__(self) -> int:
        return len(self._keys)

    def column(self, name: str) -> NDArray[Any]:
        """The values of one column, of all keys."""
        return self._columns[name]

    def find(self, keys: Keys) -> tuple[NDArray[np.bool_], dict[str, NDArray[Any]]]:
        """Which of `keys` are known, and their values (meaningless where unknown)."""
        if not len(self._keys):
            return np.zeros(len(keys), dtype=bool), {
                name: np.zeros(len(keys), dtype=c.dtype) for name, c in self._columns.items()
            }
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return self._keys[at] == keys, {name: column[at] for name, column in self._columns.items()}

    def store(self, keys: Keys, **values: NDArray[Any]) -> None:
        """Set the rows of `keys` (each once), known or new."""
        known, _ = self.find(keys)
        at = np.searchsorted(self._keys, keys[known])
        for name, column in self._columns.items():
            column[at] = values[name][known]
        fresh = np.flatnonzero(~known)
        fresh = fresh[np.argsort(keys[fresh])]
        place = np.searchsorted(self._keys, keys[fresh])
        for name in self._columns:
            self._columns[name] = np.insert(self._columns[name], place, values[name][fresh])
        self._keys = np.insert(self._keys, place, keys[fresh])
