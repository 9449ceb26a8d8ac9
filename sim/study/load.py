"""The load of a run: the trace it replays, its clock spread out and its rate changed as the run asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from stepline.traces.errors import ConfigError
from stepline.traces.reading import read_trace
from stepline.traces.trace import Trace
from stepline.traces.transform import rate_scale, spread_quantum

from .config import RunConfig


def load(path: str | Path, config: RunConfig, **reading: Any) -> Trace:
    """Read a trace and shape it for `config`; `reading`: arguments of `read_trace`.

    Raises `TraceError`, `ConfigError`.
    """
    if not Path(path).exists():
        raise ConfigError(f"--trace: no file {str(path)!r}")
    return shaped(read_trace(path, **reading), config)


def shaped(trace: Trace, config: RunConfig) -> Trace:
    """The trace as `config` replays it: coarse ticks spread out, then sessions thinned or cloned or time squeezed."""
    changed = trace
    if config.spread_quantum:
        changed = spread_quantum(changed, seed=config.seed)
    if config.rate_scale != 1.0:
        changed = rate_scale(changed, config.rate_scale, config.rate_scale_mode, config.seed)
    return changed if changed is trace else replace(changed, sha256=trace.sha256, source=trace.source)
