"""Several runs on the same arrivals, compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stepline.traces.errors import ConfigError
from stepline.traces.trace import Trace

from ..report.paired import Comparison, compare_results
from .config import RunConfig
from .run import configured, loaded, simulate_resolved
from .setup import resolve

LOAD = ("rate_scale", "rate_scale_mode", "seed", "replay", "client_timeout", "max_concurrency")
"""Settings of the load: the same in all runs of a comparison, or nothing is paired."""


def compare(
    trace: Trace | str | Path,
    configs: Mapping[str, RunConfig] | None = None,
    *,
    policies: Sequence[str] = (),
    **settings: Any,
) -> Comparison:
    """Run each configuration on the same requests and compare it with the first, request by request.

    Give `configs` by label, or `policies` by name; `settings` are fields of `RunConfig` that all runs share.

    Raises:
        ConfigError: fewer than two runs, or runs with different load settings.
    """
    shared = dict(configs or {}) | {policy: RunConfig(policy=policy) for policy in policies}
    runs = {label: configured(config, settings) for label, config in shared.items()}
    check_load(runs)
    setups = {label: resolve(config) for label, config in runs.items()}
    requests = loaded(trace, next(iter(runs.values())))
    results = {label: simulate_resolved(requests, setup, label=label) for label, setup in setups.items()}
    return compare_results(results, seed=next(iter(runs.values())).seed)


def check_load(runs: Mapping[str, RunConfig]) -> None:
    """Refuse a comparison that would not be one. Raises `ConfigError`."""
    if len(runs) < 2:
        raise ConfigError(f"compare: got {len(runs)} run(s), expected at least two")
    for name in LOAD:
        values = {label: getattr(config, name) for label, config in runs.items()}
        if len(set(values.values())) > 1:
            raise ConfigError(f"compare: {name} differs between runs ({values}), expected one load for all")
