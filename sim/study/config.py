"""Every knob of a run, under vLLM's flag names."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from stepline.traces.errors import ConfigError, nearest

if TYPE_CHECKING:
    from ..cost.specs import Dtype

Replay = Literal["open", "closed"]

BACKENDS = ("auto", "flash", "flash-decoding", "naive")
"""Names of attention back ends (`cost.attention_backends`, spelt here so that flags are checked without NumPy)."""

ELEMENTWISE = ("fused", "separate")
"""Whether norms take the residual adds along, or both are launches of their own."""

DTYPES: dict[str, Dtype | None] = {
    "auto": None,
    "bf16": "bf16", "bfloat16": "bf16",
    "fp16": "fp16", "float16": "fp16", "half": "fp16",
    "fp32": "fp32", "float32": "fp32", "float": "fp32",
    "fp8": "fp8", "fp8_e4m3": "fp8", "fp8_e5m2": "fp8",
    "int8": "int8", "int4": "int4", "fp4": "fp4", "nvfp4": "fp4",
}  # fmt: skip
"""Names of number formats that flags accept (vLLM's and short ones); `auto` is the model's own."""

DEFAULT_GPU = "h100-sxm"
"""Where neither `gpu` nor the constants of a calibration file name one."""

FLEET_TEXTS = ("fleet", "disaggregate", "failures", "autoscale", "stragglers")
"""Settings that are texts of `key=value,...`, see `study.fleet_texts`."""

NONE = "none"
"""What stands for None, no such text, where a flag or a file must say something."""

FALLBACKS: dict[str, Any] = {
    "max_num_batched_tokens": 8192,
    "max_num_seqs": 256,
    "gpu_memory_utilization": 0.9,
    "block_size": 16,
    "enable_prefix_caching": True,
}
"""Server defaults where neither the user nor the engine profile says otherwise.

Source: vLLM V1 `EngineArgs` on H100-class GPUs (8192 batched tokens, 256 sequences, block 16; utilisation 0.9
before vLLM 0.16).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run's settings. Names are vLLM's flags with underscores; None: the engine profile's or the model's
    default.

    `model`, `gpu`, `engine`, `calibration`: names or paths of files. `policy`, `kv_eviction`, `preemption`, `admission`, `kv_compression`,
    `routing`, `cost_model`: `name[:key=value,...]` or `module:Class[:key=value,...]`. `client_timeout` is
    seconds after which a client gives up (None: never). `max_concurrency`: at most so many requests in flight
    (None: no limit). `rate_scale` multiplies the arrival rate (see `traces.rate_scale`);
    `kv_offloading_size`, `kv_offloading_ssd_size`: GiB of a replica's TP group behind its KV pool (None: nothing);
    `kv_offloading_backend`: `native[:key=value,...]`, see `stepline.sim.cluster.offloading.Offloading`.
    `spread_quantum` spreads the requests of each tick of a coarse clock over it. `slo`: see
    `stepline.sim.report.slo.parse_slo`. `router_scrape_interval`: seconds between two looks of the router at its
    replicas (0: it always knows). `attention_backend`, `elementwise` and `enforce_eager` are what-ifs of the kernels,
    see `cost.roofline.RooflineCostModel`. `data_parallel_size`: ranks of an MoE model that share its experts;
    `expert_skew`: exponent of the experts' popularity (0: uniform; None: the engine profile's).
    `speculative_config`: JSON, see `study.speculation`. `enable_lora`: the trace's `adapter` names a LoRA adapter, of which
    `max_loras` of rank `max_lora_rank` are on the GPU. `usd_per_gpu_hour` replaces the GPU table's price. `fleet`
    (replicas that differ), `disaggregate` (prefill and decode apart; `decode_routing` within the decode pool, None: as
    `routing`), `failures`, `autoscale`, `stragglers`: texts of `key=value,...`, see `study.fleet_texts`.

    Raises:
        ConfigError: a value out of range, naming its flag.
    """

    model: str = "llama-3.1-8b"
    gpu: str = DEFAULT_GPU
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1
    enable_expert_parallel: bool = False
    expert_skew: float | None = None
    replicas: int = 1
    policy: str = "chunked"
    kv_eviction: str = "lru"
    preemption: str = "last-in"
    admission: str | None = None
    kv_compression: str | None = None
    routing: str = "round-robin"
    router_scrape_interval: float = 0.0
    fleet: str | None = None
    disaggregate: str | None = None
    decode_routing: str | None = None
    failures: str | None = None
    autoscale: str | None = None
    stragglers: str | None = None
    engine: str = "vllm-v1"
    cost_model: str = "roofline"
    calibration: str | None = None
    speculative_config: str | None = None
    enable_lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    attention_backend: str = "auto"
    elementwise: Literal["fused", "separate"] = "fused"
    enforce_eager: bool = False
    dtype: str = "auto"
    kv_cache_dtype: str = "auto"
    generation_config: str = "auto"
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    max_model_len: int | None = None
    block_size: int | None = None
    gpu_memory_utilization: float | None = None
    num_gpu_blocks_override: int | None = None
    enable_prefix_caching: bool | None = None
    long_prefill_token_threshold: int = 0
    kv_offloading_size: float | None = None
    kv_offloading_ssd_size: float | None = None
    kv_offloading_backend: str = "native"
    replay: Replay = "open"
    client_timeout: float | None = None
    rate_scale: float = 1.0
    rate_scale_mode: Literal["sessions", "compress"] = "sessions"
    spread_quantum: bool = False
    max_concurrency: int | None = None
    slo: str | None = None
    usd_per_gpu_hour: float | None = None
    seed: int = 0
    record_steps: bool = False
    record_blocks: bool = False

    def __post_init__(self) -> None:
        for name in (
            "tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size", "replicas",
            "max_num_batched_tokens", "max_num_seqs", "max_model_len", "block_size", "num_gpu_blocks_override",
            "max_concurrency", "max_loras", "max_lora_rank",
        ):  # fmt: skip
            _check_int(name, getattr(self, name), low=1)
        for name in ("long_prefill_token_threshold", "seed"):
            _check_int(name, getattr(self, name), low=0)
        for name in ("client_timeout", "rate_scale", "kv_offloading_size", "kv_offloading_ssd_size"):
            _check_positive(name, getattr(self, name))
        _check_not_negative("router_scrape_interval", self.router_scrape_interval)
        _check_utilization(self.gpu_memory_utilization)
        _check_price(self.usd_per_gpu_hour)
        for name in ("dtype", "kv_cache_dtype"):
            _check_name(name, getattr(self, name), DTYPES)
        _check_name("generation_config", self.generation_config, ("auto", "vllm", "greedy"))
        _check_name("attention_backend", self.attention_backend, BACKENDS)
        _check_name("elementwise", self.elementwise, ELEMENTWISE)
        for name in ("enforce_eager", "enable_expert_parallel", "enable_lora"):
            _check_switch(name, getattr(self, name))
        if self.expert_skew is not None:
            _check_not_negative("expert_skew", self.expert_skew)
        _check_name("replay", self.replay, ("open", "closed"))
        _check_name("rate_scale_mode", self.rate_scale_mode, ("sessions", "compress"))
        if self.speculative_config is not None:
            from .speculation import read_speculation

            read_speculation(self.speculative_config)
        if self.slo is not None:
            from ..report.slo import parse_slo

            parse_slo(self.slo)

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of one replica."""
        return self.tensor_parallel_size * self.pipeline_parallel_size * self.data_parallel_size


def flag(name: str) -> str:
    """The command-line flag of a setting: `tensor_parallel_size` is `--tensor-parallel-size`."""
    return f"--{name.replace('_', '-')}"


def setting_names() -> tuple[str, ...]:
    """Names of all settings, in order."""
    return tuple(f.name for f in fields(RunConfig))


def check_settings(names: Any) -> None:
    """Refuse names that are no settings. Raises `ConfigError` with the nearest one."""
    known = setting_names()
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown setting {name!r}{nearest(name, known)}")


def _check_int(name: str, value: Any, low: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{flag(name)}: got {value!r}, expected an integer >= {low}")


def _check_positive(name: str, value: Any) -> None:
    if value is not None and not (_is_number(value) and value > 0):
        raise ConfigError(f"{flag(name)}: got {value!r}, expected a number > 0")


def _check_not_negative(name: str, value: Any) -> None:
    if not (_is_number(value) and value >= 0):
        raise ConfigError(f"{flag(name)}: got {value!r}, expected a number >= 0")


def _check_price(value: Any) -> None:
    if value is not None and not (_is_number(value) and value >= 0):
        raise ConfigError(f"--usd-per-gpu-hour: got {value!r}, expected a number >= 0")


def _check_utilization(value: Any) -> None:
    if value is not None and not (_is_number(value) and 0 < value <= 1):
        raise ConfigError(f"--gpu-memory-utilization: got {value!r}, expected a fraction in (0, 1]")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_switch(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{flag(name)}: got {value!r}, expected true or false")


def _check_name(name: str, value: Any, known: Any) -> None:
    if value not in known:
        raise ConfigError(f"{flag(name)}: unknown value {value!r}{nearest(str(value), known)}")
