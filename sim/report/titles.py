"""What runs are called: titles for people, stems for files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.wording import counted

if TYPE_CHECKING:
    from .run_tables import RunTables


_SPREAD = (("PP", "pipeline_parallel_size"), ("DP", "data_parallel_size"))
"""Ways beside TP in which a replica spreads over GPUs, named where one does."""


def setup_text(configs: Sequence[Mapping[str, Any]]) -> str:
    """Model, hardware and engine; a setting that differs between runs shows all its values."""

    def same(key: str) -> str:
        return " / ".join(dict.fromkeys(str(c[key]) for c in configs))

    if len(configs) == 1 and (kinds := configs[0].get("kinds")):
        several = " + ".join(f"{k['count']} × {k['gpu']} TP {k['tensor_parallel_size']}" for k in kinds)
        return f"{same('model')} on {several}, engine {same('engine')}"
    replicas = same("replicas")
    spread = "".join(
        [f", {short} {same(key)}" for short, key in _SPREAD if any(c.get(key, 1) > 1 for c in configs)]
    )
    hardware = f"{same('gpu')}, TP {same('tensor_parallel_size')}{spread}, {replicas} replica{'' if replicas == '1' else 's'}"
    return f"{same('model')} on {hardware}, engine {same('engine')}"


def trace_text(config: Mapping[str, Any]) -> str:
    """The file name of the trace of a run."""
    return Path(str(config["trace"]["source"])).name


def subtitle(runs: Sequence[RunTables]) -> str:
    """The line under a page's heading."""
    trace = runs[0].config["trace"]
    return f"{counted(trace['requests'], 'request')} · {setup_text([run.config for run in runs])}"


def file_stem(runs: Sequence[RunTables]) -> str:
    """A stem for files saved from a page."""
    stem = trace_text(runs[0].config).split(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", f"{stem}-{'-'.join(run.label for run in runs[:3])}")[:60]
