"""The sample traces shipped in `traces/samples`: small, generated, no row of anyone's data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..errors import ConfigError, nearest
from ..trace import Trace
from ..writing import write_trace
from .generate import synth

SAMPLES_DIR = Path(__file__).resolve().parent.parent / "samples"


@dataclass(frozen=True, slots=True)
class Sample:
    """What `synth` is asked for."""

    profile: str
    seed: int
    duration_s: float
    rate_scale: float = 1.0
    n_requests: int | None = None


SAMPLES = {
    "chat": Sample("azure_conv", seed=1, duration_s=900.0, rate_scale=0.4),
    "code": Sample("azure_code", seed=3, duration_s=900.0),
    "longchat": Sample("mooncake_conv", seed=1, duration_s=900.0, rate_scale=0.3),
    "agent": Sample("claude_code", seed=3, duration_s=2100.0, rate_scale=0.2),
}


def sample_trace(name: str) -> Trace:
    """The generated trace of sample `name`. Raises: ConfigError for an unknown name."""
    if name not in SAMPLES:
        raise ConfigError(f"sample: unknown {name!r}{nearest(name, SAMPLES)}")
    chosen = SAMPLES[name]
    return synth(
        chosen.profile,
        seed=chosen.seed,
        duration_s=chosen.duration_s,
        rate_scale=chosen.rate_scale,
        n_requests=chosen.n_requests,
    )


def write_samples(folder: Path = SAMPLES_DIR) -> list[Path]:
    """Write every sample and its sidecar into `folder`; returns the paths of the traces."""
    paths = [folder / f"{name}.jsonl" for name in SAMPLES]
    for name, path in zip(SAMPLES, paths, strict=True):
        write_trace(sample_trace(name), path)
    return paths
