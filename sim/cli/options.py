"""Flags that several verbs share, and the runs they ask for."""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .parser import Parser, gibibytes, integer, listing, number, switch

if TYPE_CHECKING:
    from stepline.sim.study.config import RunConfig

MAX_RUNS = 64
"""More runs than this in one call are refused: they are a sweep."""

_Convert = Callable[[str], Any]

_MODEL: tuple[tuple[str, _Convert, str, str], ...] = (
    ("model", str, "NAME|config.json", "model: built-in name or a Hugging Face config.json (llama-3.1-8b)"),
    ("gpu", str, "NAME|FILE", "GPU: built-in name or a TOML/JSON spec (h100-sxm)"),
    ("tensor-parallel-size", integer, "N", "GPUs that share one replica, also --tp (1)"),
    ("pipeline-parallel-size", integer, "N", "stages that hold the layers of one replica, also --pp (1)"),
    ("data-parallel-size", integer, "N", "ranks of an MoE model that share its experts, also --dp (1)"),
    ("enable-expert-parallel", switch, "BOOL", "whole experts on each GPU, in place of slices of all (off)"),
    ("expert-skew", number, "A", "popularity of experts falls as rank^-A, 0: uniform (engine's)"),
    ("replicas", integer, "N", "replicas behind the router (1)"),
    ("dtype", str, "FORMAT", "weights: auto, bf16, fp8, int8, int4, fp4 (auto: the model's own)"),
    ("kv-cache-dtype", str, "FORMAT", "KV cache: auto, fp8, ... (auto: bf16)"),
    (
        "speculative-config",
        str,
        "JSON",
        'drafted tokens, e.g. {"method": "eagle", "num_speculative_tokens": 3, "acceptance": 0.7}',
    ),
    ("enable-lora", switch, "BOOL", "the trace's adapters are loaded and run (off)"),
    ("max-loras", integer, "N", "LoRA adapters on the GPU at a time (1)"),
    ("max-lora-rank", integer, "N", "rank of the adapters (16)"),
    ("attention-backend", str, "NAME", "what if: auto, flash, flash-decoding or naive (auto: as timed)"),
    ("elementwise", str, "NAME", "what if norms take residual adds along: fused, or separate (fused)"),
    ("enforce-eager", switch, "BOOL", "no CUDA graphs: the host launches every kernel (off)"),
    ("cost-model", str, "NAME|module:Class", "what prices a step (roofline)"),
    ("calibration", str, "NAME|FILE", "kernel constants (the GPU's own)"),
)
_SCHEDULING: tuple[tuple[str, _Convert, str, str], ...] = (
    ("policy", str, "NAME|module:Class", "batching policy (chunked); several are compared"),
    ("kv-eviction", str, "NAME|module:Class", "which cached blocks go first (lru)"),
    ("kv-compression", str, "NAME|module:Class", "tokens that stay in the KV cache (all of them)"),
    ("preemption", str, "NAME|module:Class", "who gives way when blocks run out (last-in)"),
    ("admission", str, "NAME|module:Class", "what a replica turns away at the door (nothing)"),
    ("routing", str, "NAME|module:Class", "which replica a request goes to (round-robin)"),
    (
        "router-scrape-interval",
        number,
        "S",
        "seconds between the router's looks at its replicas (0: it always knows)",
    ),
    ("fleet", str, "PARTS", "replicas that differ: gpu=h200,tp=2,count=3+gpu=l40s,count=4 (all alike)"),
    ("disaggregate", str, "POOLS", "prefill and decode apart: prefill=1,decode=1,link=nvlink,... (together)"),
    ("decode-routing", str, "NAME|module:Class", "routing within the decode pool (as --routing)"),
    ("failures", str, "TIMES", "mtbf=3600,mttr=120 or replica=0,at=60,for=30 (none)"),
    ("autoscale", str, "RULE", "min=1,max=8,metric=outstanding,target=32,startup=120,... (none)"),
    ("stragglers", str, "WHICH", "replica=3,factor=1.3 or frac=0.1,factor=1.5 (none)"),
    ("engine", str, "NAME|FILE", "scheduling pipeline, host times and defaults (vllm-v1)"),
    ("max-num-batched-tokens", integer, "N", "token budget of a step (engine's: 8192)"),
    ("max-num-seqs", integer, "N", "sequences that run together (engine's: 256)"),
    ("max-model-len", integer, "N", "longest prompt + output (the model's own)"),
    ("generation-config", str, "NAME", "sampling: auto (the model's), vllm (neutral) or greedy (auto)"),
    ("long-prefill-token-threshold", integer, "N", "longest chunk of one prompt, 0: no limit (0)"),
)
_MEMORY: tuple[tuple[str, _Convert, str, str], ...] = (
    ("block-size", integer, "N", "tokens in a KV block (engine's: 16)"),
    ("gpu-memory-utilization", number, "FRAC", "share of GPU memory the engine may use (engine's: 0.9)"),
    ("num-gpu-blocks-override", integer, "N", "KV blocks, in place of the memory ledger"),
    ("kv-offloading-size", gibibytes, "GIB", "host memory of a replica behind its KV blocks (none)"),
    ("kv-offloading-ssd-size", gibibytes, "GIB", "SSD of a replica behind that (none)"),
    (
        "kv-offloading-backend",
        str,
        "native[:k=v,...]",
        "write=write-through|on-evict, load=cost|always, eviction=NAME, ... (native)",
    ),
)

_ALSO = {
    "tensor-parallel-size": ("--tp",),
    "pipeline-parallel-size": ("--pp",),
    "data-parallel-size": ("--dp",),
}
"""Short names of flags."""

_PLUGINS = (
    "policy", "kv_eviction", "preemption", "admission", "kv_compression", "routing", "decode_routing", "cost_model",
    "kv_offloading_backend",
)  # fmt: skip
_TEXTS = ("speculative_config", "fleet", "disaggregate", "failures", "autoscale", "stragglers")
"""Flags whose values have commas of their own: repeat the flag to give several."""
_ABSENT = (
    *_TEXTS,
    "kv_compression",
    "admission",
    "kv_offloading_size",
    "kv_offloading_ssd_size",
    "decode_routing",
)
"""Flags that do nothing unless they are given."""
NONE = "none"
"""The value of such a flag that stands for not giving it, in a comparison with and without."""


def add_trace_options(parser: Parser) -> None:
    """What is replayed, and how."""
    group = parser.add_argument_group("load")
    group.add_argument("--trace", metavar="FILE", help="requests to replay (formats: simulate trace --help)")
    group.add_argument("--trace-format", metavar="NAME", help="format of the trace (detected)")
    group.add_argument("--hash-block-size", type=integer, metavar="TOKENS",
                       help="tokens per id of hash_ids, where neither rows nor sidecar say")  # fmt: skip
    group.add_argument("--request-rate", type=number, metavar="PER_S",
                       help="arrivals per second for formats without times")  # fmt: skip
    group.add_argument("--spread-quantum", action="store_true",
                       help="spread the requests of each tick of a coarse clock over the tick")  # fmt: skip
    group.add_argument("--replay", choices=("open", "closed"), default="open",
                       help="open: at the trace's times; closed: turns wait for the one before (open)")  # fmt: skip
    group.add_argument("--rate-scale", type=number, default=1.0, metavar="X",
                       help="times the arrival rate (1)")  # fmt: skip
    group.add_argument("--rate-scale-mode", choices=("sessions", "compress"), default="sessions",
                       help="thin or clone whole sessions, or squeeze time (sessions)")  # fmt: skip
    group.add_argument(
        "--max-concurrency", type=integer, metavar="N", help="most requests in flight (no limit)"
    )
    group.add_argument(
        "--client-timeout", type=number, metavar="S", help="clients give up after S seconds (never)"
    )
    group.add_argument("--slo", metavar="LIMITS", help="objectives: 'ttft_p99<0.5,tpot_p99<50ms,attainment>0.99' "
                       "or mlperf:MODEL-SCENARIO; adds goodput")  # fmt: skip
    group.add_argument("--seed", type=integer, default=0, metavar="N", help="seed of everything random (0)")


def add_run_options(parser: Parser) -> None:
    """The replica: model, GPU, scheduling, memory. Each takes several values (repeat it, or commas)."""
    for title, rows in (("hardware and model", _MODEL), ("scheduling", _SCHEDULING), ("KV cache", _MEMORY)):
        group = parser.add_argument_group(title)
        for name, convert, metavar, text in rows:
            names = [f"--{name}", *_ALSO.get(name, ())]
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if convert is switch else {}
            group.add_argument(
                *names, dest=name.replace("-", "_"), action="append", metavar=metavar, help=text, **bare
            )
        if title == "KV cache":
            group.add_argument("--enable-prefix-caching", action=argparse.BooleanOptionalAction, default=None,
                               help="reuse blocks of equal prefixes (engine's: on)")  # fmt: skip
    group = parser.add_argument_group("import")
    group.add_argument("--vllm-args", metavar="FLAGS", help="settings from the flags of a vLLM server, in quotes; "
                       "a flag given here wins over them")  # fmt: skip
    parser.add_argument_group("price").add_argument(
        "--usd-per-gpu-hour", type=number, metavar="USD", help="price of a GPU hour (the GPU table's)"
    )


def run_configs(args: argparse.Namespace) -> dict[str, RunConfig]:
    """The runs that the flags ask for: every combination of the flags given several values, by label.

    A label says what differs between the runs, e.g. `chunked` or `chunked,tp=2`.

    Raises:
        ConfigError: a value that its flag does not take, or more than `MAX_RUNS` combinations.
    """
    from stepline.sim.study.config import RunConfig

    choices = choices_of(args)
    _check_count(choices)
    shared = shared_settings(args)
    configs = {}
    for picked in itertools.product(*choices.values()):
        settings = dict(zip(choices, picked, strict=True))
        label = label_of({k: v for k, v in settings.items() if len(choices[k]) > 1})
        configs[label or str(settings.get("policy", RunConfig().policy))] = RunConfig(**shared, **settings)
    return configs


def choices_of(args: argparse.Namespace, *, unique: bool = True) -> dict[str, list[Any]]:
    """Values by setting, for the flags that were given; if `unique`, repeated values count once."""
    args = with_vllm_args(args)
    choices: dict[str, list[Any]] = {}
    for name, convert, *_ in (*_SCHEDULING, *_MODEL, *_MEMORY):
        key = name.replace("-", "_")
        texts = getattr(args, key)
        if texts is not None:
            values = _values(name, key, texts, convert)
            choices[key] = list(dict.fromkeys(values)) if unique else values
    return choices


def _values(name: str, key: str, texts: Sequence[str], convert: _Convert) -> list[Any]:
    if key in _PLUGINS:
        from stepline.sim.engine.plugins import split_plugins

        items = [item for text in texts for item in split_plugins(text)]
    elif key in _TEXTS:
        items = list(texts)
    else:
        items = listing(texts)
    if not items:
        raise ConfigError(f"--{name}: got {','.join(texts)!r}, expected a value")
    try:
        return [None if item == NONE and key in _ABSENT else convert(item) for item in items]
    except argparse.ArgumentTypeError as error:
        raise ConfigError(f"--{name}: {error}") from None


def _check_count(choices: dict[str, list[Any]]) -> None:
    count = 1
    for values in choices.values():
        count *= len(values)
    if count > MAX_RUNS:
        several = ", ".join(f"--{k.replace('_', '-')} ({len(v)})" for k, v in choices.items() if len(v) > 1)
        raise ConfigError(f"{several}: {count} runs, expected at most {MAX_RUNS} in one call")


def shared_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Settings that all runs of a call share."""
    args = with_vllm_args(args)
    shared = {name: getattr(args, name) for name in _SINGLE}
    recorded = {name: bool(getattr(args, name, False)) for name in ("record_steps", "record_blocks")}
    return {**shared, **recorded}


def with_vllm_args(args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with what `--vllm-args` says filled in where no flag of ours was given."""
    if getattr(args, "vllm_args", None) is None:
        return args
    from .vllm_args import imported

    found = imported(args.vllm_args)
    absent: dict[str, Any] = {
        name: [text] for name, text in found.settings.items() if getattr(args, name) is None
    }
    if args.enable_prefix_caching is None:
        absent["enable_prefix_caching"] = found.prefix_caching
    if "data_parallel_size" in absent and not _has_experts(absent.get("model") or args.model):
        absent["replicas"] = absent.pop("data_parallel_size")  # ranks that share nothing
    if found.passed_over and not getattr(args, "quiet", False):
        text = "without effect on a simulation"
        print(f"simulate: --vllm-args: {', '.join(found.passed_over)}: {text}", file=sys.stderr)
    vars(args).update(absent, vllm_args=None)
    return args


def _has_experts(models: Sequence[str] | None) -> bool:
    from stepline.sim.cost.catalogue import load_model
    from stepline.sim.study.config import RunConfig

    return load_model((models or [RunConfig().model])[0]).moe is not None


def reading_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `read_trace` is told by flags."""
    return {name: getattr(args, name) for name in ("trace_format", "hash_block_size", "request_rate", "seed")}


_SINGLE = (
    "replay", "rate_scale", "rate_scale_mode", "spread_quantum", "max_concurrency", "client_timeout", "slo", "seed",
    "enable_prefix_caching", "usd_per_gpu_hour",
)  # fmt: skip
"""Flags with one value for all runs of a call."""

_SHORT = {"tensor_parallel_size": "tp", "pipeline_parallel_size": "pp", "data_parallel_size": "dp"}


def label_of(differing: dict[str, Any]) -> str:
    """The policy goes by its bare name, everything else as key=value."""
    parts = [str(differing["policy"])] if "policy" in differing else []
    parts += [
        f"{_SHORT.get(k, k.replace('_', '-'))}={NONE if v is None else v}"
        for k, v in differing.items()
        if k != "policy"
    ]
    return ",".join(parts)
