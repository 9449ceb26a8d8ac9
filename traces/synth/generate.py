"""From a profile to a trace: the same bytes for the same profile, seed and limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..joining import concatenate
from ..random_streams import stream
from ..trace import Trace
from .profile import Profile, load_profile
from .registry import number

_ROWS = 65_536  # rows handed on at once: what writes them holds text for each


def synth(
    profile: str | Path | Profile,
    *,
    seed: int = 0,
    duration_s: float | None = None,
    n_requests: int | None = None,
    rate_scale: float = 1.0,
) -> Trace:
    """Generate a trace.

    `profile`: name, file or `Profile`; `duration_s`: arrivals before that time, seconds (default: the
    profile's own, unless `n_requests` is given); `n_requests`: at most so many; `rate_scale`: multiplies the
    rate of arrivals. Raises: ConfigError for a wrong argument or profile.

    >>> len(synth("azure_conv", seed=1, n_requests=10))
    10
    """
    blocks = list(
        synth_blocks(profile, seed=seed, duration_s=duration_s, n_requests=n_requests, rate_scale=rate_scale)
    )
    return concatenate(blocks)


def synth_blocks(
    profile: str | Path | Profile,
    *,
    seed: int = 0,
    duration_s: float | None = None,
    n_requests: int | None = None,
    rate_scale: float = 1.0,
) -> Iterator[Trace]:
    """The rows of `synth`, block by block, in bounded memory; at least one block (maybe empty)."""
    chosen = profile if isinstance(profile, Profile) else load_profile(profile)
    number("rate_scale", rate_scale, low=0, above=True)
    if duration_s is None and n_requests is None:
        duration_s = chosen.duration_s
    if duration_s is not None:
        number("duration_s", duration_s, low=0, above=True)
    if n_requests is not None and (not isinstance(n_requests, int) or n_requests < 1):
        raise ConfigError(f"n_requests: got {n_requests!r}, expected an integer >= 1")
    meta = provenance(chosen, seed, duration_s, n_requests, rate_scale)
    source = f"synth {chosen.name} (seed {seed})"
    blocks = chosen.build().scaled(rate_scale).blocks(partial(stream, seed, "synth"))
    limited = _limited(blocks, duration_s, n_requests)
    return (replace(piece, source=source, meta=meta) for block in limited for piece in _pieces(block))


def provenance(
    profile: Profile, seed: int, duration_s: float | None, n_requests: int | None, rate_scale: float
) -> dict[str, Any]:
    """The sidecar's content for a generated trace."""
    block_size = profile.workload.get("block_size")
    return {
        "version": 1,
        "time_unit": "ms",
        **({} if block_size is None else {"block_size": block_size}),
        "source": f"generated from profile {profile.name}; its figures: {profile.source}",
        "license": profile.license,
        "generator": {
            "profile": profile.name,
            "duration_s": duration_s,
            "n_requests": n_requests,
            "rate_scale": rate_scale,
        },
        "seed": seed,
    }


def _pieces(block: Trace) -> Iterator[Trace]:
    """`block` in pieces of at most `_ROWS` rows."""
    if len(block) <= _ROWS:
        yield block
        return
    for start in range(0, len(block), _ROWS):
        yield block.take(np.arange(start, min(start + _ROWS, len(block))))


def _limited(blocks: Iterator[Trace], duration_s: float | None, n_requests: int | None) -> Iterator[Trace]:
    """Rows before `duration_s`, at most `n_requests`; yields at least one block."""
    left, started = n_requests, False
    for block in blocks:
        keep = len(block) if left is None else min(left, len(block))
        if duration_s is not None:
            keep = min(keep, int(np.searchsorted(block.arrival_s, duration_s)))
        last = keep < len(block) or keep == left
        if keep or (last and not started):
            yield block if keep == len(block) else block.take(np.arange(keep))
            started = True
        if last:
            return
        left = None if left is None else left - keep
