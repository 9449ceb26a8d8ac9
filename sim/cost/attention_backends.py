"""Attention as it would run without what today's kernels do: scores through memory, or a decode's keys not split.

What the fits describe (`auto`) are FlashAttention-3 and FlashInfer kernels, which keep scores on chip and split the keys
of a decode over the processors. The other back ends are what-ifs on the same constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from stepline.traces.errors import ConfigError

from . import forms, operators
from .attention_costs import AttentionShape, DecodeAttention
from .calibration import KernelFit
from .forms import Array, Split
from .specs import GpuSpec
from .step_seconds import Segments

AttentionBackend = Literal["auto", "flash", "flash-decoding", "naive"]

BACKENDS: Mapping[str, str] = {
    "auto": "the engine's kernels as they were timed: scores on chip, a decode's keys split over the processors",
    "flash": "scores on chip, keys not split: a decode keeps one processor a sequence and KV head busy",
    "flash-decoding": "scores on chip, keys split in decodes and in chunks on a cached history",
    "naive": "scores written to memory and read back, masked ones too: three kernels a layer",
}
"""Names of `--attention-backend` and what each means."""

HISTORY_RULES: Mapping[str, str] = {"flash": "work", "flash-decoding": "split-kv"}
"""How a back end computes a chunk on cached keys (`PrefillAttention`); the others leave it to the engine."""

SCORE_PASSES = 4
"""Times the score matrix crosses memory: written by QK^T, read and written by the softmax, read by PV
(FlashAttention, Dao et al. 2022, algorithm 0)."""

NAIVE_LAUNCHES = 3
"""Kernels of naive attention in a layer: QK^T, softmax (scale and mask in it), PV."""


def check_backend(name: str) -> None:
    """Raise ConfigError for a back end that does not exist."""
    if name not in BACKENDS:
        raise ConfigError(f"attention_backend: got {name!r}, expected one of {', '.join(BACKENDS)}")


class UnsplitDecode(DecodeAttention):
    """Decode attention without split keys: n sequences of K heads fill min(1, n K / SMs) of the GPU, and draw that share
    of its bandwidth and FLOP/s (Flash-Decoding, Dao, Haziza, Massa, Sizov 2023: "FlashAttention uses less than 1 % of the
    GPU" at batch 1). By formula: a residual of split kernels says nothing about it.
    """

    def __init__(
        self, shape: AttentionShape, fit: KernelFit, gpu: GpuSpec, peak: float, *, layers: int
    ) -> None:
        super().__init__(shape, replace(fit, residual=None), gpu, peak, layers=layers)

    def _make(self, n: int) -> Segments:
        slope = self.slope * float(self._crowding(float(n)))
        return [], [self.layers * float(self._fixed_s(float(n)))], [self.layers * slope]

    def _crowding(self, n: Array | float) -> Array:
        """Processors of the GPU for each that works."""
        n_sm = self.gpu.n_sm
        return np.asarray(n_sm / np.clip(np.asarray(n, dtype=float) * self.shape.kv_heads, 1.0, n_sm))

    def split(self, n: Array, context: Array) -> tuple[Split, Array, Array]:
        """See `DecodeAttention.split`; the work is the same, on fewer processors."""
        split, _, _ = super().split(n, context * self._crowding(n))
        _, flops, moved = super().split(n, context)
        return split, flops, moved


class NaiveTerms(NamedTuple):
    """Seconds of one layer: each of the two GEMMs by computing and by moving, the softmax; FLOPs and bytes of all."""

    compute: Any
    memory: Any
    softmax: Any
    flops: Any
    bytes: Any


class NaiveAttention:
    """Attention with its scores in memory; prefill and decode alike, of any window (masked scores are computed too).

    QK^T and PV are GEMMs at the GEMM's share of the peak, the softmax an elementwise kernel; all move bytes at the
    elementwise kernels' rate. With S scores a head (all of c · (done + c), the causal half not spared) and H heads:
    4 H S d FLOPs, 2 · 4 H S bytes of scores (`SCORE_PASSES`), and queries, keys, values and outputs once.
    """

    def __init__(
        self,
        shape: AttentionShape,
        gemm: KernelFit,
        elementwise: KernelFit,
        gpu: GpuSpec,
        peak: float,
        *,
        layers: int,
    ) -> None:
        self.shape, self.layers = shape, layers
        self.flops_per_s = gemm.constants["compute_eff"] * peak
        self.bytes_per_s = elementwise.constants["memory_eff"] * gpu.hbm_bytes_per_s
        self.launch_s = NAIVE_LAUNCHES * elementwise.constants["t0_s"]
        self.pass_bytes = operators.ACTIVATION_BYTES * shape.kv_heads * shape.group

    def terms(self, tokens: Any, scores: Any, kv_tokens: Any) -> NaiveTerms:
        """Of `tokens` queries with `scores` query-key pairs a head over `kv_tokens` keys."""
        shape = self.shape
        query, keys = tokens * shape.query_bytes, kv_tokens * shape.kv_bytes
        passed = scores * self.pass_bytes
        flops = scores * shape.flops_per_pair
        query_s = query / 2 / self.bytes_per_s  # in both, so that a decode is affine in its context
        return NaiveTerms(
            compute=query_s + flops / 2 / self.flops_per_s,
            memory=query_s + (keys / 2 + passed) / self.bytes_per_s,
            softmax=(SCORE_PASSES - 2) * passed / self.bytes_per_s,
            flops=flops,
            bytes=query + keys + SCORE_PASSES * passed,
        )

    def total_s(self, terms: NaiveTerms) -> float:
        """Seconds of all layers (scalars)."""
        return self.layers * float(self.launch_s + 2.0 * max(terms.compute, terms.memory) + terms.softmax)

    def booked(self, terms: NaiveTerms, keep: NDArray[np.bool_]) -> tuple[Split, Array, Array]:
        """Seconds by bound, FLOPs and bytes of all layers, where `keep` says that there is work."""
        gemms = 2.0 * np.maximum(terms.compute, terms.memory)
        split = forms.split_by_largest(
            self.launch_s, gemms, {"compute": terms.compute, "kv_bandwidth": terms.memory}
        )
        split["kv_bandwidth"] = split["kv_bandwidth"] + terms.softmax
        times = np.where(keep, float(self.layers), 0.0)
        return forms.scaled(split, times), terms.flops * times, terms.bytes * times


class NaivePrefill(NaiveAttention):
    """Chunks of prompts; those of one step count as if they were of equal length (exact for one chunk)."""

    def seconds(
        self, tokens: float, seqs: float, pairs: float, kv_tokens: float, joined: bool = False
    ) -> float:
        """Seconds of the chunks of one step; they share no launch with the decodes."""
        return self.total_s(self.terms(tokens, _square(tokens, seqs, pairs), kv_tokens))

    def split(
        self, tokens: Array, seqs: Array, pairs: Array, kv_tokens: Array, joined: Any = False
    ) -> tuple[Split, Array, Array]:
        """See `PrefillAttention.split`."""
        some = tokens > 0
        scores = np.where(some, _square(tokens, np.maximum(seqs, 1.0), pairs), 0.0)
        return self.booked(self.terms(tokens, scores, kv_tokens), some)


def _square(tokens: Any, seqs: Any, pairs: Any) -> Any:
    """Scores computed, the masked half of each chunk's own triangle included: Σ c (done + c)."""
    return pairs + tokens * (tokens / seqs - 1.0) / 2.0


class NaiveDecode(NaiveAttention):
    """One query a sequence: n queries over Σ context keys, affine in the context."""

    def segments(self, n: int) -> Segments:
        """One line: see `DecodeAttention.segments`."""
        fixed = self.seconds(n, 0.0)
        one = self.terms(0.0, 1.0, 1.0)
        return [], [fixed], [self.layers * float(2.0 * max(one.compute, one.memory) + one.softmax)]

    def seconds(self, n: int, context: float) -> float:
        """Seconds for `n` decodes over Σ context tokens."""
        return self.total_s(self.terms(n, context, context))

    def split(self, n: Array, context: Array) -> tuple[Split, Array, Array]:
        """See `DecodeAttention.split`."""
        return self.booked(self.terms(n, context, context), n > 0)
