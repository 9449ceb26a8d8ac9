"""The growing table on disk: rows measured so far, kept whole at any moment, never measured twice."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import CalibrationError

from ..schema import TIMING_COLUMNS, check_timings

if TYPE_CHECKING:
    import pandas as pd

_TIMING = ("cold", "graph", "median_s", "spread_s", "repeats")
KEY_COLUMNS = tuple(c for c in TIMING_COLUMNS if c not in _TIMING)
"""What makes two rows the same measurement: everything that is not its outcome."""


class TimingTable:
    """Rows in memory and in a parquet file. `flush` replaces the file at once, so that a cut run loses nothing."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != ".parquet":
            raise CalibrationError(f"--out: got {self.path.name!r}, expected a name that ends in .parquet")
        self._rows: list[dict[str, Any]] = _read(self.path)
        self._keys = {_key(row) for row in self._rows}
        self.resumed = len(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, row: Mapping[str, Any]) -> bool:
        return _key(row) in self._keys

    def refuse_other_gpus(self, gpu: str) -> None:
        """Raise CalibrationError if the file holds rows of another device: a fit would mix two machines."""
        others = sorted({str(row["gpu"]) for row in self._rows} - {gpu})
        if others:
            raise CalibrationError(
                f"{self.path}: holds rows of {others[0]}, this device is {gpu}; give another --out"
            )

    def add(self, row: Mapping[str, Any]) -> None:
        """Append one measured row."""
        self._rows.append(dict(row))
        self._keys.add(_key(row))

    def frame(self) -> pd.DataFrame:
        """All rows in the timing schema, checked."""
        import pandas as pd

        return check_timings(pd.DataFrame(self._rows), str(self.path))

    def flush(self) -> None:
        """Write all rows; readers see the old file or the new one, never a half."""
        if not self._rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        part = self.path.with_name(f".{self.path.name}.part")
        self.frame().to_parquet(part, index=False)
        part.replace(self.path)


def _read(path: Path) -> list[dict[str, Any]]:
    import pandas as pd

    if not path.exists():
        return []
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path}: exists but cannot be read to resume from: {error}") from error
    rows = check_timings(frame, str(path)).astype(object)
    return [{str(k): v for k, v in row.items()} for row in rows.to_dict("records")]


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    import pandas as pd

    values = (row.get(c) for c in KEY_COLUMNS)
    return tuple(None if v is None or pd.isna(v) else v for v in values)
