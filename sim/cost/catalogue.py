"""The built-in models, GPUs and engines, by name, alias or the user's own file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from ...traces.errors import ConfigError, nearest
from .model_config import model_from_config
from .sampler import sampling_of
from .specs import Dtype, EngineProfile, GpuSpec, ModelSpec, VisionSpec
from .toml_spec import engine_from, gpu_from, model_extras

Row = Mapping[str, Any]

_SUFFIXES: dict[str, Dtype] = {
    "-fp8-dynamic": "fp8",
    "-fp8": "fp8",
    "-quantized.w8a8": "int8",
    "-quantized.w4a16": "int4",
    "-w8a8": "int8",
    "-w4a16": "int4",
    "-awq": "int4",
    "-gptq-int4": "int4",
    "-gptq-int8": "int8",
    "-nvfp4": "fp4",
}
"""Suffixes under which quantisers publish checkpoints, in the order they are tried."""


def load_model(name_or_path: str | Path, *, counts_only: bool = False) -> ModelSpec:
    """A built-in model by name or Hugging Face id, or one from a `config.json` (or the folder that holds it).

    A known model's name with a quantiser's suffix (`-FP8-dynamic`, `-quantized.w8a8`, `-AWQ`, ...) is that model with
    quantised linear layers.

    Args:
        name_or_path: `llama-3.1-8b`, `meta-llama/Llama-3.1-8B-Instruct`, `./my-model/config.json`; upper and lower
            case are the same.
        counts_only: also hand out the shapes that no operator prices (encoder-decoder Switch).

    Raises:
        ConfigError: unknown name (with the nearest), bad file, or a shape that is not priced.
    """
    if _is_path(name_or_path):
        return model_from_config(name_or_path)
    base, dtype = _quantised(str(name_or_path))
    model = _model(_find("model", base))
    model = replace(model, weight_dtype=dtype) if dtype else model
    if model.unpriced and not counts_only:
        raise ConfigError(f"model {name_or_path!r}: {model.unpriced}")
    return model


def load_gpu(name_or_path: str | Path) -> GpuSpec:
    """A built-in GPU by name or alias, or one from a TOML or JSON file with the fields of `GpuSpec`.

    Raises:
        ConfigError: unknown name (with the nearest) or bad file.
    """
    if _is_path(name_or_path):
        return gpu_from(read_table(Path(name_or_path), "gpu"), str(name_or_path))
    return gpu_from(_find("gpu", str(name_or_path)), "gpus.toml")


def load_engine(name_or_path: str | Path) -> EngineProfile:
    """A built-in engine profile by name or alias, or one from a TOML or JSON file.

    Raises:
        ConfigError: unknown name (with the nearest) or bad file.
    """
    if _is_path(name_or_path):
        return engine_from(read_table(Path(name_or_path), "engine"), str(name_or_path))
    return engine_from(_find("engine", str(name_or_path)), "engines.toml")


def known_models(*, counts_only: bool = False) -> tuple[str, ...]:
    """Names of the built-in models in the order of the table; `counts_only`: with those no operator prices."""
    return tuple(row["name"] for row in _rows("model") if counts_only or "unpriced" not in row)


def known_gpus() -> tuple[str, ...]:
    """Names of the built-in GPUs."""
    return tuple(row["name"] for row in _rows("gpu"))


def known_engines() -> tuple[str, ...]:
    """Names of the built-in engine profiles."""
    return tuple(row["name"] for row in _rows("engine"))


def aliases(kind: str, name: str) -> tuple[str, ...]:
    """Other names under which the built-in `kind` ("model", "gpu", "engine") called `name` is found."""
    return tuple(next(row for row in _rows(kind) if row["name"] == name).get("aliases", ()))


def read_table(path: Path, kind: str) -> Row:
    """A TOML or JSON file as a mapping; a single `[[kind]]` row or `[kind]` table in it is unwrapped.

    Raises:
        ConfigError: unreadable or malformed file.
    """
    try:
        raw = path.read_bytes()
        content = json.loads(raw) if path.suffix == ".json" else tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not {path.suffix.lstrip('.') or 'TOML'} ({error})") from None
    inner = content.get(kind, content) if isinstance(content, dict) else content
    if isinstance(inner, list) and len(inner) == 1:
        inner = inner[0]
    if not isinstance(inner, dict):
        raise ConfigError(f"{path}: got {type(inner).__name__}, expected one table of {kind} fields")
    return inner


def _is_path(name: str | Path) -> bool:
    if isinstance(name, Path) or name.endswith((".json", ".toml")):
        return True
    return name.startswith((".", "/", "~")) or (Path(name) / "config.json").is_file()


def _find(kind: str, name: str) -> Row:
    index = _index(kind)
    row = index.get(_key(name))
    if row is None:
        raise ConfigError(f"unknown {kind} {name!r}{nearest(name, [r['name'] for r in _rows(kind)])}")
    return row


def _quantised(name: str) -> tuple[str, Dtype | None]:
    """(name without a quantiser's suffix, weight dtype) of a name that is not built in as it stands."""
    if _key(name) in _index("model"):
        return name, None
    for suffix, dtype in _SUFFIXES.items():
        if _key(name).endswith(suffix):
            return name[: -len(suffix)].rsplit("/", 1)[-1], dtype
    return name, None


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-").replace(" ", "-")


@lru_cache(maxsize=8)
def _index(kind: str) -> dict[str, Row]:
    index: dict[str, Row] = {}
    for row in _rows(kind):
        for name in (row["name"], *row.get("aliases", ())):
            index[_key(name)] = row
            index.setdefault(_key(name.rsplit("/", 1)[-1]), row)
    return index


@lru_cache(maxsize=8)
def _rows(kind: str) -> tuple[Row, ...]:
    text = (resources.files(__package__) / "data" / f"{kind}s.toml").read_text(encoding="utf-8")
    return tuple(tomllib.loads(text)[kind])


def _model(row: Row) -> ModelSpec:
    published = (float(row["params_total"]), float(row.get("params_active", row["params_total"])))
    spec = model_from_config(
        row["config"],
        name=row["name"],
        params_published=published,
        extra_params=row.get("extra_params", 0),
        vision=VisionSpec(**row["vision"]) if "vision" in row else None,
        provenance=row["source"],
    )
    return replace(model_extras(spec, row), sampling=sampling_of(spec.name))
