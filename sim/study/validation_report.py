"""A validation as files: tables, and pictures where wanted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .validation_scores import RULES
from .validation_table import accuracy_page

if TYPE_CHECKING:
    import pandas as pd

    from .validate import Validation


def as_json(result: Validation) -> str:
    """Every value, the means by experiment, group and peer, and the skipped ones, as one JSON document."""
    content = {
        "rules": RULES,
        "groups": {
            key: _records(result.groups(key)) for key in ("group", "arch", "tp", "engine", "gpu", "model")
        }
        if not result.values.empty
        else {},
        "medians": _records(result.groups(stat="median")) if not result.values.empty else [],
        "experiments": _records(result.experiments()) if not result.values.empty else [],
        "peers": _records(result.against_peers()) if not result.values.empty else [],
        "values": _records(result.values),
        "skipped": result.skipped,
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def write_report(result: Validation, folder: Path, command: str, *, pictures: bool) -> None:
    """`README.md`, `experiments.csv`, `groups.csv`, `peers.csv`, `skipped.csv` and pictures into `folder`.

    No measured value is written, only errors: the folder of measured runs may not be ours to publish.
    """
    import pandas as pd

    folder.mkdir(parents=True, exist_ok=True)
    if not result.values.empty:
        _write(result.experiments(), folder / "experiments.csv")
        groups = [result.groups(key, stat).rename_axis("value").reset_index().assign(by=key, stat=stat)
                  for key in ("group", "arch", "tp", "engine", "gpu", "model")
                  for stat in ("mean", "median")]  # fmt: skip
        table = pd.concat(groups, ignore_index=True)
        first = ["by", "stat"]
        _write(table[[*first, *[c for c in table if c not in first]]], folder / "groups.csv")
        _write(result.against_peers().reset_index(), folder / "peers.csv")
        (folder / "README.md").write_text(accuracy_page(result, command), encoding="utf-8")
    _write(
        pd.DataFrame(sorted(result.skipped.items()), columns=["exp_key", "reason"]), folder / "skipped.csv"
    )
    (folder / "command.txt").write_text(command + "\n", encoding="utf-8")
    if pictures and not result.values.empty:
        from .validation_pictures import draw

        draw(result, folder)


def _write(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False, float_format="%.5g", lineterminator="\n")


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.reset_index().to_dict("records")
    return [{str(k): _plain(v) for k, v in row.items() if k != "index"} for row in rows]


def _plain(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
