"""From settings to the objects of a run: specs, policies, KV blocks, cost model; everything is checked here."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from ..cluster.cluster import ClusterSpec, ReplicaSpec
from ..cost.catalogue import load_engine, load_gpu, load_model
from ..engine.plugins import load_plugin, plugin_factory
from .config import DTYPES, FALLBACKS, RunConfig, flag

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..cost.specs import EngineProfile, GpuSpec, ModelSpec


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A run ready to start: the cluster, and `described`, every resolved setting and spec, JSON-able."""

    config: RunConfig
    cluster: ClusterSpec
    described: dict[str, Any]


def resolve(config: RunConfig) -> Setup:
    """Look up names, fill defaults (engine profile's, else `FALLBACKS`), size the KV cache, build the policies.

    Raises:
        ConfigError: an unknown name (with the nearest), values that do not go together, a model that does not fit.
    """
    engine = _named("engine", lambda: load_engine(config.engine))
    config = _with_defaults(config, engine)
    model, gpu = _model(config), _named("gpu", lambda: load_gpu(config.gpu))
    config = replace(config, max_model_len=_max_model_len(config, model))
    _check_together(config, model)
    blocks, ledger = _kv_blocks(config, model, gpu, engine)
    cost_model, calibration = _cost_model(config, model, gpu, engine)
    replicas = tuple(
        _replica(config, model, gpu, engine, cost_model, blocks, i) for i in range(config.replicas)
    )
    described = _described(config, model, gpu, engine, ledger, blocks, calibration)
    cluster = ClusterSpec(
        replicas=replicas,
        routing=load_plugin("stepline.routing_policies", config.routing),
        replay=config.replay,
        client_timeout_s=config.client_timeout,
        max_concurrency=config.max_concurrency,
        record_steps=config.record_steps,
        config=described,
    )
    return Setup(config, cluster, described)


@contextmanager
def _flagged(name: str) -> Iterator[None]:
    """Errors of a look-up start with the flag that asked for it."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise (error if text.startswith(flag(name)) else ConfigError(f"{flag(name)}: {text}")) from None


def _named(name: str, look_up: Callable[[], Any]) -> Any:
    with _flagged(name):
        return look_up()


def _with_defaults(config: RunConfig, engine: EngineProfile) -> RunConfig:
    """Settings that are None get the engine's own server default, else the fallback."""
    absent = {k: engine.defaults.get(k, v) for k, v in FALLBACKS.items() if getattr(config, k) is None}
    return replace(config, **absent)


def _model(config: RunConfig) -> ModelSpec:
    model: ModelSpec = _named("model", lambda: load_model(config.model))
    dtype = DTYPES[config.dtype]
    return model if dtype is None else replace(model, weight_dtype=dtype)


def _max_model_len(config: RunConfig, model: ModelSpec) -> int:
    asked = config.max_model_len
    if asked is not None and asked > model.max_model_len:
        raise ConfigError(
            f"--max-model-len: got {asked}, {model.name} was made for at most {model.max_model_len}"
        )
    return asked or model.max_model_len


def _check_together(config: RunConfig, model: ModelSpec) -> None:
    tp, budget, block = config.tensor_parallel_size, config.max_num_batched_tokens, config.block_size
    if model.n_heads % tp:
        raise ConfigError(
            f"--tensor-parallel-size: got {tp}, expected a divisor of {model.name}'s {model.n_heads} heads"
        )
    if budget is not None and block is not None and budget < block:
        raise ConfigError(
            f"--max-num-batched-tokens: got {budget}, expected at least a block (--block-size {block})"
        )


def _replica(
    config: RunConfig,
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineProfile,
    cost_model: Any,
    blocks: int,
    index: int,
) -> ReplicaSpec:
    eviction = plugin_factory("stepline.eviction_policies", config.kv_eviction)
    return ReplicaSpec(
        name=f"replica-{index}",
        model=model,
        gpu=gpu,
        tp=config.tensor_parallel_size,
        engine=engine,
        cost_model=cost_model,
        policy=load_plugin("stepline.batch_policies", config.policy),
        preemption=load_plugin("stepline.preemption_policies", config.preemption),
        eviction=eviction if config.enable_prefix_caching else None,
        kv_blocks=blocks,
        block_size=_known(config.block_size),
        max_num_seqs=_known(config.max_num_seqs),
        max_num_batched_tokens=_known(config.max_num_batched_tokens),
        max_model_len=_known(config.max_model_len),
        long_prefill_token_threshold=config.long_prefill_token_threshold,
    )


def _known(value: int | None) -> int:
    if value is None:  # pragma: no cover - `_with_defaults` and `_max_model_len` fill these
        raise ConfigError("a setting without a default was left open")
    return value
