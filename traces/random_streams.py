"""Named random streams: a new consumer of randomness shifts no other one."""

from __future__ import annotations

import hashlib

import numpy as np

from .errors import ConfigError


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The generator that belongs to `names` under `seed`; equal in every process and on every machine.

    Names are hashed with SHA-256 into the `spawn_key` of a `numpy.random.SeedSequence`, so streams of
    different names are independent and neither the order nor the number of calls matters.  Draw raw uniforms
    (`Generator.random`) and invert a quantile function: NumPy keeps that bit stream fixed, while its
    distribution methods may change between versions (NumPy's stream compatibility policy, NEP 19).

    Raises: ConfigError where `seed` is not an integer >= 0.

    >>> stream(7, "gaps").random() == stream(7, "gaps").random()
    True
    >>> stream(7, "gaps").random() == stream(7, "lengths").random()
    False
    """
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ConfigError(f"seed: got {seed!r}, expected an integer >= 0")
    text = "\x1f".join(f"{type(name).__name__}:{name}" for name in names)
    words = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype="<u4")
    sequence = np.random.SeedSequence(int(seed), spawn_key=tuple(int(w) for w in words))
    return np.random.Generator(np.random.PCG64(sequence))
