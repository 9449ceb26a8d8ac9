"""The sample traces shipped in `traces/samples`: small, generated, no row of anyone's data."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, nearest
from ..trace import Trace
from .generate import synth
from .rows import jsonl_lines

SAMPLES_DIR = Path(__file__).resolve().parent.parent / "samples"


@dataclass(frozen=True, slots=True)
class Sample:
    """What `synth` is asked for."""

    profile: str
    seed: int
    duration_s: float
    rate_scale: float = 1.0


SAMPLES = {
    "chat": Sample("azure_conv", seed=1, duration_s=900.0, rate_scale=0.4),
}


def sample_trace(name: str) -> Trace:
    """The generated trace of sample `name`. Raises: ConfigError for an unknown name."""
    if name not in SAMPLES:
        raise ConfigError(f"sample: unknown {name!r}{nearest(name, SAMPLES)}")
    chosen = SAMPLES[name]
    return synth(chosen.profile, seed=chosen.seed, duration_s=chosen.duration_s, rate_scale=chosen.rate_scale)


def sample_files(name: str) -> dict[str, bytes]:
    """File name to content: the sample's JSONL and its sidecar."""
    trace = sample_trace(name)
    rows = "".join(jsonl_lines(trace)).encode()
    sidecar = {**trace.meta, "rows": len(trace), "sha256": hashlib.sha256(rows).hexdigest()}
    text = json.dumps(sidecar, indent=1, ensure_ascii=False) + "\n"
    return {f"{name}.jsonl": rows, f"{name}.meta.json": text.encode()}


def write_samples(folder: Path = SAMPLES_DIR) -> list[Path]:
    """Write every sample; returns the paths written."""
    written = []
    for name in SAMPLES:
        for file, content in sample_files(name).items():
            (folder / file).write_bytes(content)
            written.append(folder / file)
    return written
