"""From settings to the objects of a run: specs, policies, KV blocks, cost model; everything is checked here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from ..cluster.cluster import ClusterSpec, ReplicaSpec
from ..cluster.offloading import Offloading
from ..cluster.slowed import SlowedCost
from ..cost.calibration import load_calibration
from ..cost.catalogue import load_engine, load_gpu, load_model
from ..cost.drafting import Footprint
from ..cost.lora import adapter_bytes
from ..cost.memory import MemoryLedger, kv_ledger
from ..cost.sampler import chosen_sampling
from ..cost.specs import GpuSpec
from ..engine.acceptance import AcceptanceTape
from ..engine.plugins import load_plugin, load_plugin_class, parse_plugin, plugin_factory
from ..engine.seats import Limits
from .config import DEFAULT_GPU, DTYPES, FALLBACKS, RunConfig, flag
from .fleet_texts import autoscaling_of, disaggregation_of, kinds_of, outages_of, slow_replicas
from .parallel import Layout
from .pricing import cost_model_of, flagged, speculation_of
from .speculation import beside

if TYPE_CHECKING:
    from ..cost.calibration import Calibration
    from ..cost.specs import EngineProfile, ModelSpec


COMPRESSIONS = "stepline.kv_compressions"
"""Entry-point group of token-level KV compression."""


@dataclass(frozen=True, slots=True, eq=False)
class Setup:
    """A run ready to start: the cluster, and `described`, every resolved setting and spec, JSON-able."""

    config: RunConfig
    cluster: ClusterSpec
    described: dict[str, Any]
    warnings: tuple[str, ...] = ()


def resolve(config: RunConfig, calibration: Calibration | None = None) -> Setup:
    """Look up names, fill defaults (engine profile's, else `FALLBACKS`), size the KV cache, build the policies.

    `calibration` takes the place of the one that `config` names (a draw of it, say).

    Raises:
        ConfigError: an unknown name (with the nearest), values that do not go together, a model that does not fit.
    """
    engine = _named("engine", lambda: load_engine(config.engine))
    kinds = kinds_of(config)
    config = replace(config, replicas=sum(kind.count for kind in kinds))
    if calibration is not None and len(kinds) > 1:
        raise ConfigError("--fleet: one calibration cannot stand for replicas that differ")
    made = [_made(kind.config, engine, calibration) for kind in kinds]
    specs = [m.build() for kind, m in zip(kinds, made, strict=True) for _ in range(kind.count)]
    described = made[0].described | {
        name: value for name, value in asdict(config).items() if name in OF_A_FLEET
    }
    if len(kinds) > 1:
        described["kinds"] = [{"count": k.count, **m.described} for k, m in zip(kinds, made, strict=True)]
    cluster = ClusterSpec(
        replicas=_numbered(_slowed(specs, config)),
        routing=_routing(config, "routing"),
        scrape_interval_s=config.router_scrape_interval,
        replay=config.replay,
        client_timeout_s=config.client_timeout,
        max_concurrency=config.max_concurrency,
        record_steps=config.record_steps,
        record_blocks=config.record_blocks,
        **_fleet(config),
    )
    cluster.check()
    return Setup(
        replace(made[0].config, replicas=config.replicas),
        cluster,
        described,
        tuple(dict.fromkeys([text for m in made for text in m.warnings])),
    )


OF_A_FLEET = ("replicas", "fleet", "disaggregate", "decode_routing", "failures", "autoscale", "stragglers")
"""Settings of all replicas together."""


@dataclass(frozen=True, slots=True, eq=False)
class _Made:
    """What a configuration makes: itself as resolved, `build` (a replica with policies of its own), its description,
    what to tell."""

    config: RunConfig
    build: Callable[[], ReplicaSpec]
    described: dict[str, Any]
    warnings: tuple[str, ...]


def _made(config: RunConfig, engine: EngineProfile, calibration: Calibration | None) -> _Made:
    """Specs, KV cache and cost model of equal replicas."""
    config = _with_defaults(config, engine)
    model = _model(config)
    gpu, notes = _gpu(config)
    config = replace(config, max_model_len=_max_model_len(config, model))
    layout = Layout.of(config, model)
    if layout.pp > 1:
        engine = replace(engine, pipeline_depth=0)  # vLLM plans a pipeline's batches without async scheduling
    _check_together(config)
    ledger = _ledger(config, model, gpu, engine, layout)
    # the engine counts one block per block_size tokens: of a pool shared by groups of layers, token_blocks
    blocks = _known(config.num_gpu_blocks_override) if ledger is None else ledger.token_blocks
    blocks = layout.blocks(blocks)
    cost_model, constants = cost_model_of(config, model, gpu, engine, calibration)
    described = _described(config, model, gpu, engine)
    described |= {"kv_blocks": blocks, "kv_ledger": ledger and asdict(ledger), "calibration": constants}
    build = partial(_replica, config, model, gpu, engine, cost_model, layout, blocks)
    warnings = (*_not_modelled(config), *layout.notes, *notes, *getattr(cost_model, "warnings", ()))
    return _Made(config, build, described, warnings)


def _slowed(specs: list[ReplicaSpec], config: RunConfig) -> list[ReplicaSpec]:
    """The replicas, stragglers among them; equal ones share a cost model."""
    if config.stragglers is None:
        return specs
    slow = slow_replicas(config.stragglers, len(specs), config.seed)
    models: dict[tuple[int, float], SlowedCost] = {}
    found = list(specs)
    for number, factor in slow.items():
        inner = specs[number].cost_model
        model = models.setdefault((id(inner), factor), SlowedCost(inner, factor))
        found[number] = replace(specs[number], cost_model=model)
    return found


def _numbered(specs: list[ReplicaSpec]) -> tuple[ReplicaSpec, ...]:
    return tuple([replace(spec, name=f"replica-{i}") for i, spec in enumerate(specs)])


def _fleet(config: RunConfig) -> dict[str, Any]:
    """What a fleet has beyond replicas and a router."""
    if config.decode_routing is not None and config.disaggregate is None:
        raise ConfigError("--decode-routing: got a policy, expected --disaggregate with it")
    parts: dict[str, Any] = {}
    if config.disaggregate is not None:
        parts["disaggregation"] = disaggregation_of(config.disaggregate)
        parts["decode_routing"] = config.decode_routing and _routing(config, "decode_routing")
    if config.failures is not None:
        parts["outages"] = outages_of(config.failures, config.seed)
    if config.autoscale is not None:
        parts["autoscaling"] = autoscaling_of(config.autoscale)
    return parts


def check_names(config: RunConfig) -> None:
    """Look up everything that a setting names, without asking whether it goes together.

    Raises:
        ConfigError: an unknown name, with the nearest: a mistake of the user, whatever else is compared with it.
    """
    _named("engine", lambda: load_engine(config.engine))
    _named("model", lambda: load_model(config.model))
    _named("gpu", lambda: load_gpu(config.gpu))
    for name in ("policy", "preemption", "kv_eviction", "routing"):
        asked = getattr(config, name)
        load_plugin_class(_GROUPS[name], parse_plugin(asked, flag(name)).target)


_GROUPS = {
    "policy": "stepline.batch_policies",
    "preemption": "stepline.preemption_policies",
    "kv_eviction": "stepline.eviction_policies",
    "routing": "stepline.routing_policies",
}


def _not_modelled(config: RunConfig) -> tuple[str, ...]:
    """What a reader of the result must know: speed and room are modelled, quality is not; nothing is cached to evict."""
    notes = []
    if config.kv_compression is not None:
        notes.append(
            f"--kv-compression {config.kv_compression}: tokens are dropped; what that does to answers is not modelled"
        )
    if not config.enable_prefix_caching and config.kv_eviction != RunConfig().kv_eviction:
        notes.append(f"--kv-eviction {config.kv_eviction}: without effect while prefix caching is off")
    return tuple(notes)


def _gpu(config: RunConfig) -> tuple[GpuSpec, tuple[str, ...]]:
    """The GPU, and what to tell about it: constants from a file speak of one device, which need not be the default.

    Raises ConfigError where a file of constants was made on another GPU than the one asked for.
    """
    if config.calibration is None or not Path(config.calibration).is_file():
        return _named("gpu", lambda: load_gpu(config.gpu)), ()
    calibration = load_calibration(Path(config.calibration))
    own = GpuSpec(**_tuples(calibration.gpu_spec)) if calibration.gpu_spec else None
    asked = None if config.gpu == DEFAULT_GPU else _named("gpu", lambda: load_gpu(config.gpu))
    if asked is None and calibration.gpu != DEFAULT_GPU:
        note = f"GPU {calibration.gpu}: the one that the constants of {config.calibration} were measured on"
        return own or _named("calibration", lambda: load_gpu(calibration.gpu)), (note,)
    gpu = asked or _named("gpu", lambda: load_gpu(config.gpu))
    if gpu.name != calibration.gpu:
        raise ConfigError(
            f"--calibration: {config.calibration} holds constants of {calibration.gpu}, --gpu is {gpu.name}: expected "
            f"constants of that GPU, or no --gpu"
        )
    return gpu, ()


def _tuples(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a spec as JSON gives them, lists made tuples again."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _routing(config: RunConfig, name: str) -> Any:
    """The routing policy of a setting; one that draws at random gets the run's seed, unless its text says another."""
    group, text = "stepline.routing_policies", getattr(config, name)
    try:
        takes_seed = (
            "seed"
            in inspect.signature(load_plugin_class(group, parse_plugin(text, flag(name)).target)).parameters
        )
        return load_plugin(group, text, **({"seed": config.seed} if takes_seed else {}))
    except ConfigError as error:
        raise ConfigError(str(error).replace("--routing", flag(name), 1)) from None


def _named(name: str, look_up: Callable[[], Any]) -> Any:
    with flagged(name):
        return look_up()


def _with_defaults(config: RunConfig, engine: EngineProfile) -> RunConfig:
    """Settings that are None get the engine's own server default, else the fallback."""
    absent = {k: engine.defaults.get(k, v) for k, v in FALLBACKS.items() if getattr(config, k) is None}
    return replace(config, **absent)


def _model(config: RunConfig) -> ModelSpec:
    model: ModelSpec = _named("model", lambda: load_model(config.model))
    dtype = DTYPES[config.dtype]
    sampling = chosen_sampling(model.sampling, config.generation_config)
    return replace(model, weight_dtype=dtype or model.weight_dtype, sampling=sampling)


def _max_model_len(config: RunConfig, model: ModelSpec) -> int:
    asked = config.max_model_len
    if asked is not None and asked > model.max_model_len:
        raise ConfigError(
            f"--max-model-len: got {asked}, {model.name} was made for at most {model.max_model_len}"
        )
    return asked or model.max_model_len


def _check_together(config: RunConfig) -> None:
    budget, block = config.max_num_batched_tokens, config.block_size
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
    layout: Layout,
    blocks: int,
) -> ReplicaSpec:
    eviction = plugin_factory("stepline.eviction_policies", config.kv_eviction)
    limits = layout.limits(
        Limits(
            _known(config.max_num_seqs),
            _known(config.max_num_batched_tokens),
            _known(config.max_model_len),
            config.long_prefill_token_threshold,
        ),
        (blocks - 1) // layout.dp * _known(config.block_size),
    )
    return ReplicaSpec(
        model=model,
        gpu=gpu,
        tp=layout.tp,
        pp=layout.pp,
        dp=layout.dp,
        tape=_tape(config),
        max_loras=config.max_loras if config.enable_lora else None,
        max_lora_rank=config.max_lora_rank,
        engine=engine,
        cost_model=cost_model,
        policy=load_plugin("stepline.batch_policies", config.policy),
        preemption=load_plugin("stepline.preemption_policies", config.preemption),
        admission=plugin_factory("stepline.admission_policies", config.admission)
        if config.admission
        else None,
        eviction=eviction if config.enable_prefix_caching else None,
        kv_blocks=blocks,
        block_size=_known(config.block_size),
        kv_dtype=DTYPES[config.kv_cache_dtype] or "bf16",
        compression=load_plugin(COMPRESSIONS, config.kv_compression) if config.kv_compression else None,
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_model_len=limits.max_model_len,
        long_prefill_token_threshold=limits.long_prefill_token_threshold,
        usd_per_gpu_hour=_price(config, gpu),
        offloading=Offloading.parse(
            config.kv_offloading_backend, config.kv_offloading_size, config.kv_offloading_ssd_size
        ),
    )


def _price(config: RunConfig, gpu: GpuSpec) -> float | None:
    return gpu.usd_per_hour if config.usd_per_gpu_hour is None else config.usd_per_gpu_hour


def _tape(config: RunConfig) -> AcceptanceTape | None:
    """Draws of how many drafted tokens are accepted, from the run's seed."""
    asked = speculation_of(config)
    return None if asked is None else AcceptanceTape(asked.acceptance, config.seed)


def _known(value: int | None) -> int:
    if value is None:  # pragma: no cover - `_with_defaults` and `_max_model_len` fill these
        raise ConfigError("a setting without a default was left open")
    return value


def _ledger(
    config: RunConfig, model: ModelSpec, gpu: GpuSpec, engine: EngineProfile, layout: Layout
) -> MemoryLedger | None:
    """The memory ledger; None where the user states the number of blocks.

    A `--max-model-len` must fit into the cache, as vLLM demands; the model's own length need not: a request that is
    too long for the cache is rejected, and counted, when it comes.
    """
    if config.num_gpu_blocks_override is not None:
        return None
    books = kv_ledger(
        model,
        gpu,
        engine=engine,
        tp=layout.tp,
        pp=layout.pp,
        gpu_memory_utilization=config.gpu_memory_utilization,
        max_num_batched_tokens=config.max_num_batched_tokens,
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len if config.max_model_len != model.max_model_len else None,
        kv_dtype=DTYPES[config.kv_cache_dtype] or "bf16",
        block_size=config.block_size,
        experts=layout.experts,
    )
    if config.enable_lora:
        slots_bytes = config.max_loras * adapter_bytes(model, config.max_lora_rank, layout.tp)
        books = beside(books, Footprint(slots_bytes, 0.0), "--max-loras")
    drafts = speculation_of(config)
    if drafts is None:
        return books
    kv_dtype, size = DTYPES[config.kv_cache_dtype] or "bf16", _known(config.block_size)
    return beside(books, drafts.footprint(model, tp=layout.tp, kv_dtype=kv_dtype, block_size=size))


def _described(config: RunConfig, model: ModelSpec, gpu: GpuSpec, engine: EngineProfile) -> dict[str, Any]:
    """Every setting as it was resolved, and the specs behind the names."""
    return {
        **asdict(config),
        "gpu": gpu.name
        if config.gpu == DEFAULT_GPU
        else config.gpu,  # that of the constants, where a file has them
        "usd_per_gpu_hour": _price(config, gpu),
        "model_spec": asdict(model),
        "gpu_spec": asdict(gpu),
        "engine_profile": asdict(engine),
    }
