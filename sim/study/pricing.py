"""The cost model of a run: kernels as asked for, a pipeline of stages, a draft or adapters beside them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import CalibrationError, ConfigError

from ..cost.lora import LoraCostModel
from ..cost.memory_ledger import kv_block_bytes
from ..cost.pipeline import pipeline
from ..cost.plugins import load_cost_model
from ..cost.roofline import RooflineCostModel
from ..cost.speculation import SpeculativeCostModel
from ..cost.storing import StoringCostModel
from ..engine.plugins import load_plugin_class, parse_plugin
from .config import DTYPES, FALLBACKS, RunConfig, flag
from .parallel import Layout
from .speculation import Speculation, read_speculation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..cost.calibration import Calibration
    from ..cost.specs import EngineProfile, GpuSpec, ModelSpec
    from ..cost.work import CostModel


def cost_model_of(
    config: RunConfig,
    model: ModelSpec,
    gpu: GpuSpec,
    engine: EngineProfile,
    constants: Calibration | None,
) -> tuple[CostModel, str | None]:
    """The cost model, and the id of the calibration it uses (None: it uses none)."""
    asked = parse_plugin(config.cost_model, "--cost-model")
    name = asked.target
    if asked.is_path:  # makes modules of the current directory, and files, importable by name
        found = load_plugin_class("stepline.cost_models", name)
        name = f"{found.__module__}:{found.__qualname__}"
    drafts = speculation_of(config)
    wider = {} if drafts is None else {"queries": drafts.width}
    layout = Layout.of(config, model)
    demanded = {**wider, **layout.demanded(config), **_kernels(config)}

    def load(profile: EngineProfile, spec: ModelSpec) -> CostModel:
        return load_cost_model(
            name,
            model=spec,
            gpu=gpu,
            tp=config.tensor_parallel_size,
            engine=profile,
            calibration=constants or config.calibration,
            kv_dtype=DTYPES[config.kv_cache_dtype],
            demanded={**demanded, **asked.parameters},
        )

    def price(profile: EngineProfile) -> Any:
        load_on = partial(load, profile)
        if layout.pp > 1:
            return _pipeline(config, model, layout.pp, load_on)
        return _adapted(config, _speculative(config, load_on(model)))

    with _calibration_errors(config, model, gpu), flagged("cost_model"):
        cost_model = _storing(config, model, engine, price)
    calibration = getattr(cost_model, "calibration", None)
    return cost_model, getattr(calibration, "id", None)


def _pipeline(config: RunConfig, model: ModelSpec, pp: int, load: Callable[[ModelSpec], CostModel]) -> Any:
    """Stages of a pipeline, each priced as a model of its layers."""

    def stage(spec: ModelSpec) -> RooflineCostModel:
        return _roofline(load(spec), config, "pipeline_parallel_size")

    return pipeline(model, pp, config.max_num_batched_tokens or FALLBACKS["max_num_batched_tokens"], stage)


def _roofline(found: Any, config: RunConfig, asked_by: str) -> RooflineCostModel:
    """The cost model if its kernels can be taken apart, else a ConfigError."""
    if not isinstance(found, RooflineCostModel):
        raise ConfigError(
            f"{flag(asked_by)}: got cost model {config.cost_model!r}, expected roofline or datasheet"
        )
    return found


def _speculative(config: RunConfig, target: Any) -> Any:
    """The target's cost model with a draft behind it, where one is asked for."""
    asked = speculation_of(config)
    if asked is None:
        return target
    target = _roofline(target, config, "speculative_config")
    options = {"kv_dtype": target.kv_dtype, **_kernels(config)}
    return SpeculativeCostModel(target, asked.draft(target, **options))


def _storing(
    config: RunConfig, model: ModelSpec, engine: EngineProfile, price: Callable[[EngineProfile], CostModel]
) -> CostModel:
    """The price on an engine, and where it copies KV to host memory, what it loses once that is full."""
    if config.kv_offloading_size is None or not engine.store_scan_s:
        return price(engine)
    tp, block_size = config.tensor_parallel_size, config.block_size or FALLBACKS["block_size"]
    dtype = DTYPES[config.kv_cache_dtype] or "bf16"
    block_bytes = tp * kv_block_bytes(model, tp=tp, kv_dtype=dtype, block_size=block_size)
    return StoringCostModel.of(
        price, engine, int(config.kv_offloading_size * 2**30 / block_bytes), block_size
    )


def _adapted(config: RunConfig, plain: Any) -> Any:
    """The cost model with LoRA adapters, where they are on."""
    if not config.enable_lora or isinstance(plain, SpeculativeCostModel):
        return plain  # the replica's check refuses both together
    return LoraCostModel(_roofline(plain, config, "enable_lora"), config.max_lora_rank)


def _kernels(config: RunConfig) -> dict[str, Any]:
    """The kernels' what-ifs that differ from what engines do."""
    asked = {
        "attention_backend": config.attention_backend,
        "fused_elementwise": config.elementwise == "fused",
        "enforce_eager": config.enforce_eager,
    }
    usual = {"attention_backend": "auto", "fused_elementwise": True, "enforce_eager": False}
    return {name: value for name, value in asked.items() if value != usual[name]}


@contextmanager
def _calibration_errors(config: RunConfig, model: ModelSpec, gpu: GpuSpec) -> Iterator[None]:
    """Errors of a calibration start with its flag, or, where none was given, with what it was looked up for."""
    try:
        yield
    except CalibrationError as error:
        asked = flag("calibration") if config.calibration else f"--model {model.name}, --gpu {gpu.name}"
        raise CalibrationError(f"{asked}: {error}") from None


def speculation_of(config: RunConfig) -> Speculation | None:
    """What a run drafts with (None: nothing)."""
    return None if config.speculative_config is None else read_speculation(config.speculative_config)


@contextmanager
def flagged(name: str) -> Iterator[None]:
    """Errors of a look-up start with the flag that asked for it."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        raise (error if text.startswith("--") else ConfigError(f"{flag(name)}: {text}")) from None
