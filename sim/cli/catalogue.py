"""`simulate models|gpus|engines|policies`: what is built in, with sources; a table, or JSON with `--json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import EntryPoint
from typing import Any

from stepline.traces.errors import ConfigError, nearest

from ..cost.catalogue import (
    aliases,
    known_engines,
    known_gpus,
    known_models,
    load_engine,
    load_gpu,
    load_model,
)
from ..cost.memory import kv_block_bytes
from ..cost.parameters import parameter_count
from ..cost.registry import registered
from ..cost.specs import EngineProfile, GpuSpec, ModelSpec
from .parser import Parser

POLICY_GROUPS = {
    "batching": "stepline.batch_policies",
    "eviction": "stepline.eviction_policies",
    "preemption": "stepline.preemption_policies",
    "admission": "stepline.admission_policies",
    "compression": "stepline.kv_compressions",
    "routing": "stepline.routing_policies",
}
"""Kind of policy: its entry-point group."""

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """List what is built in; `argv` starts with the kind: models, gpus, engines or policies.

    Returns:
        The exit code, 0.

    Raises:
        ConfigError: unknown kind or name.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    kind = arguments[0] if arguments else ""
    if kind not in LISTINGS:
        raise ConfigError(f"unknown list {kind!r}{nearest(kind, LISTINGS)}")
    options = _parser(kind).parse_args(arguments[1:])
    rows = LISTINGS[kind](options.names)
    if options.json:
        print(json.dumps([row.get("spec", row) for row in rows], indent=2))
    else:
        _print(kind, rows, full=bool(options.names))
    return 0


def model_rows(names: Sequence[str]) -> list[Row]:
    """One row a model: shape, parameters, KV bytes a token, source. All built-in models when `names` is empty."""
    chosen = names or known_models(counts_only=True)
    return [_model_row(load_model(name, counts_only=True)) for name in chosen]


def gpu_rows(names: Sequence[str]) -> list[Row]:
    """One row a GPU: the fields of `GpuSpec`."""
    return [_gpu_row(load_gpu(name)) for name in names or known_gpus()]


def engine_rows(names: Sequence[str]) -> list[Row]:
    """One row an engine profile: the fields of `EngineProfile` that differ from nothing."""
    return [_engine_row(load_engine(name)) for name in names or known_engines()]


def policy_rows(names: Sequence[str]) -> list[Row]:
    """One row an installed policy: kind, name, first line of its docstring, and where it comes from.

    Raises:
        ConfigError: a name that no group has.
    """
    rows = [
        {"kind": kind, "name": point.name, "what": _first_line(point), "target": point.value}
        for kind, group in POLICY_GROUPS.items()
        for point in registered(group).values()
    ]
    known = {row["name"] for row in rows}
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown policy {name!r}{nearest(name, known)}")
    return [row for row in rows if not names or row["name"] in names]


LISTINGS: dict[str, Callable[[Sequence[str]], list[Row]]] = {
    "models": model_rows,
    "gpus": gpu_rows,
    "engines": engine_rows,
    "policies": policy_rows,
}

_COLUMNS: dict[str, dict[str, str]] = {
    "models": {
        "name": "model",
        "params": "params",
        "active": "active",
        "layers": "layers",
        "heads": "heads (KV)",
        "attention": "attention",
        "ffn": "FFN",
        "kv": "KV KiB/token",
        "max_model_len": "max length",
    },
    "gpus": {
        "name": "GPU",
        "bf16": "bf16 TFLOP/s",
        "fp8": "fp8 TFLOP/s",
        "bandwidth": "TB/s",
        "ridge": "FLOP/B",
        "memory": "GiB",
        "link": "link GB/s",
        "tdp_w": "W",
        "usd_per_hour": "$/h",
    },
    "engines": {
        "name": "engine",
        "pipeline_depth": "depth",
        "step_host_ms": "host ms/step",
        "request_ms": "ms/request",
        "graphs": "graphs to",
        "flags": "tokens / sequences / memory / block",
    },
    "policies": {"kind": "kind", "name": "name", "what": "what it does"},
}


def _parser(kind: str) -> Parser:
    parser = Parser(prog=f"simulate {kind}", description=f"List {kind}, or describe some by name.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, with aliases and source")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    return parser


def _print(kind: str, rows: list[Row], *, full: bool) -> None:
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    console = Console(highlight=False)
    if full and kind != "policies":
        for row in rows:
            for key, value in row["spec"].items():
                console.print(f"{key:24} {value}", markup=False, soft_wrap=True)
            console.print()
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for key, title in _COLUMNS[kind].items():
        numeric = key not in ("name", "attention", "ffn", "flags", "kind", "what")
        table.add_column(title, justify="right" if numeric else "left", no_wrap=key != "what")
    for row in rows:
        table.add_row(*("" if row[key] is None else str(row[key]) for key in _COLUMNS[kind]))
    if kind != "policies":  # a table cut to a narrow terminal (or a pipe's 80 columns) would lose its figures
        wide = console.options.update(width=1000)
        console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(table)
    if kind != "policies":
        console.print()
        for row in rows:
            refused = f" [counts only: {row['unpriced']}]" if row.get("unpriced") else ""
            console.print(
                f"{row['name']}: {row['source']}{refused}", markup=False, style="dim", soft_wrap=True
            )


def _model_row(model: ModelSpec) -> Row:
    count = parameter_count(model)
    spec = asdict(model) | {"aliases": _aliases("model", model.name)}
    spec |= {"parameters": asdict(count) | {"total": count.total, "active": count.active}}
    return {
        "name": model.name,
        "params": _billions(count.total),
        "active": _billions(count.active) if model.moe else None,
        "layers": model.n_layers,
        "heads": f"{model.n_heads} ({model.n_kv_heads})" if model.mla is None else f"{model.n_heads}",
        "attention": _attention(model),
        "ffn": _ffn(model),
        "kv": f"{kv_block_bytes(model, block_size=1) / 1024:g}",
        "max_model_len": model.max_model_len,
        "unpriced": model.unpriced or None,
        "source": model.source,
        "spec": spec,
    }


def _attention(model: ModelSpec) -> str:
    if model.mla is not None:
        return f"MLA {model.mla.kv_lora_rank}+{model.mla.qk_rope_head_dim}"
    kind = {model.n_heads: "MHA", 1: "MQA"}.get(model.n_kv_heads, "GQA")
    local = [f"{n} of {model.n_layers} in {w}" for w, n in model.windows if w is not None]
    return f"{kind}, {', '.join(local)}" if local else kind


def _ffn(model: ModelSpec) -> str:
    if model.moe is None:
        return f"{model.ffn_size}{'' if model.gated_ffn else ' classic'}"
    moe = model.moe
    shared = f"+{moe.n_shared}" if moe.n_shared else ""
    return f"{moe.top_k}{shared} of {moe.n_experts} x {moe.expert_size}"


def _gpu_row(gpu: GpuSpec) -> Row:
    bf16, fp8 = gpu.peak_flops.get("bf16"), gpu.peak_flops.get("fp8")
    return {
        "name": gpu.name,
        "bf16": f"{bf16 / 1e12:.4g}" if bf16 else None,
        "fp8": f"{fp8 / 1e12:.4g}" if fp8 else None,
        "bandwidth": f"{gpu.hbm_bytes_per_s / 1e12:.3g}",
        "ridge": f"{bf16 / gpu.hbm_bytes_per_s:.0f}" if bf16 else None,
        "memory": f"{gpu.memory_bytes / 2**30:.1f}",
        "link": f"{gpu.nvlink_bytes_per_s / 1e9:.0f}",
        "tdp_w": f"{gpu.tdp_w:.0f}",
        "usd_per_hour": None if gpu.usd_per_hour is None else f"{gpu.usd_per_hour:.2f}",
        "source": gpu.source,
        "spec": asdict(gpu),
    }


def _engine_row(engine: EngineProfile) -> Row:
    spec = asdict(engine) | {"aliases": _aliases("engine", engine.name)}
    return {
        "name": engine.name,
        "pipeline_depth": engine.pipeline_depth,
        "step_host_ms": f"{engine.step_host_s * 1e3:.2g}",
        "request_ms": f"{(engine.request_ingest_s + engine.output_delay_s) * 1e3:.2g}",
        "graphs": engine.max_graph_tokens or None,
        "flags": _defaults(engine),
        "source": engine.source,
        "spec": spec,
    }


def _defaults(engine: EngineProfile) -> str:
    flags = ("max_num_batched_tokens", "max_num_seqs", "gpu_memory_utilization", "block_size")
    return " / ".join(str(engine.defaults.get(flag, "-")) for flag in flags)


def _aliases(kind: str, name: str) -> tuple[str, ...]:
    built_in = known_models(counts_only=True) if kind == "model" else known_engines()
    return aliases(kind, name) if name in built_in else ()


def _billions(n: int) -> str:
    return f"{n / 1e9:.3g} B" if n < 1e12 else f"{n / 1e12:.3g} T"


def _first_line(point: EntryPoint) -> str:
    """First docstring line of a policy; a plug-in that cannot be loaded is listed with the reason."""
    try:
        documented = point.load().__doc__ or ""
    except Exception as error:  # noqa: BLE001 - a broken plug-in of a third party must not hide the others
        return f"(cannot be loaded: {type(error).__name__}: {error})"
    return documented.strip().splitlines()[0] if documented.strip() else "(no description)"
