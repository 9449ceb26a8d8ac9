"""One run: a trace and a configuration in, a result out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stepline.traces.errors import ConfigError, PolicyError, SteplineError
from stepline.traces.trace import Trace

from ..cluster.cluster import Progress, run_cluster
from ..cost.user_code import comes_from_user
from ..cost.user_code import described as described_error
from ..engine.result import RunResult
from .config import RunConfig, check_settings
from .load import load, shaped
from .setup import Setup, resolve

OnProgress = Callable[[Progress], None]


def simulate(
    trace: Trace | str | Path,
    config: RunConfig | None = None,
    *,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> RunResult:
    """Replay `trace` (a `Trace`, or the path of one) and return what happened.

    `settings` are fields of `RunConfig` (`policy="chunked"`, `tensor_parallel_size=2`, ...) and win over `config`.
    `on_progress` is called now and then while the run goes on.

    Raises:
        InputError: a wrong trace or setting.
        PolicyError: a policy asked for something impossible.
    """
    config = configured(config, settings)
    setup = resolve(config)
    return simulate_resolved(loaded(trace, config), setup, on_progress=on_progress)


def simulate_resolved(
    trace: Trace, setup: Setup, *, label: str | None = None, on_progress: OnProgress | None = None
) -> RunResult:
    """Run a `Setup` on a trace that is at the wanted rate already; `label` names the run in its result.

    Raises:
        PolicyError: a policy asked for something impossible, or the user's own code raised something.
    """
    provenance = {"source": trace.source, "sha256": trace.sha256, "requests": len(trace)}
    described = {"label": label or setup.config.policy, **setup.described, "trace": provenance}
    try:
        result = run_cluster(trace, replace(setup.cluster, config=described), on_progress)
    except SteplineError:
        raise
    except Exception as error:
        if comes_from_user(error):
            raise PolicyError(described_error(error)) from error
        raise
    return replace(result, warnings=(*setup.warnings, *_passed_over(trace, setup.config), *result.warnings))


def _passed_over(trace: Trace, config: RunConfig) -> tuple[str, ...]:
    """What the trace says and the run does not heed."""
    adapters = trace.columns.get("adapter")
    named = adapters is not None and any(a is not None for a in adapters)
    if config.enable_lora:
        return () if named else ("--enable-lora: no request of the trace names an adapter",)
    plain = RunConfig()
    slots = (config.max_loras, config.max_lora_rank) != (plain.max_loras, plain.max_lora_rank)
    told = ("the trace names LoRA adapters, which are served as the base model: --enable-lora loads them",)
    return (told if named else ()) + (
        ("--max-loras, --max-lora-rank: nothing without --enable-lora",) if slots else ()
    )


def configured(config: RunConfig | None, settings: dict[str, Any]) -> RunConfig:
    """`config` (or the defaults) with `settings` changed. Raises `ConfigError`."""
    check_settings(settings)
    return replace(config or RunConfig(), **settings)


def loaded(trace: Trace | str | Path, config: RunConfig) -> Trace:
    """The trace at the configuration's rate, read first if it is a path."""
    if isinstance(trace, Trace):
        return shaped(trace, config)
    if isinstance(trace, str | Path):
        return load(trace, config)
    raise ConfigError(f"trace: got {type(trace).__name__}, expected a Trace or the path of one")
