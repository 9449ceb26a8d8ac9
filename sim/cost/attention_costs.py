"""Attention of one group of layers (one window): scalar for the hot path, vectorised for breakdowns, the same sums."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from . import forms, operators
from .calibration import KernelFit
from .forms import Array, Split
from .residual import TILE_ROWS, ResidualGrid, prefill_features
from .specs import GpuSpec, ModelSpec
from .step_seconds import ChunkPrice, ChunkSeconds, DecodePrice, Segments


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """What attention costs a pair, a query token and a key in one layer on one GPU.

    flops_per_pair        2 H (d_qk + d_v)
    query_bytes           query read and output written, a new token
    kv_bytes              keys and values read, a context token
    kv_floor_bytes        the least that must come from memory, a context token (MLA prefill: the latent)
    expand_flops          MLA prefill: up-projection of a cached latent, a history token
    kv_heads              CTAs a sequence opens in a decode; columns of query tiles in a prefill
    group                 query heads that share a KV head: rows of a query tile a token
    kv_elements           keys written to the cache, a new token (MLA prefill: not told apart, 0)
    """

    flops_per_pair: float
    query_bytes: float
    kv_bytes: float
    kv_floor_bytes: float
    kv_heads: int
    group: float = 1.0
    expand_flops: float = 0.0
    kv_elements: int = 0


def prefill_shape(model: ModelSpec, tp: int, kv_dtype: str) -> AttentionShape:
    """Prefill attention; MLA runs expanded, per head d_nope + d_rope against d_v."""
    heads, kv_heads = operators.heads_per_gpu(model, tp)
    if model.mla is None:
        return _plain_shape(heads, kv_heads, model.head_dim, kv_dtype)
    mla = model.mla
    qk = mla.qk_nope_head_dim + mla.qk_rope_head_dim
    return AttentionShape(
        flops_per_pair=operators.attention_flops(1.0, heads, qk, mla.v_head_dim),
        query_bytes=operators.query_bytes(1.0, heads, qk, mla.v_head_dim),
        kv_bytes=operators.ACTIVATION_BYTES * heads * (qk + mla.v_head_dim),
        kv_floor_bytes=operators.latent_bytes(1.0, mla.kv_lora_rank, mla.qk_rope_head_dim, kv_dtype),
        kv_heads=heads,
        expand_flops=2.0 * mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim),
    )


def decode_shape(model: ModelSpec, tp: int, kv_dtype: str) -> AttentionShape:
    """Decode attention; MLA runs absorbed: every head against the latent of rank d_c (+ d_r for scores)."""
    heads, kv_heads = operators.heads_per_gpu(model, tp)
    if model.mla is None:
        return _plain_shape(heads, kv_heads, model.head_dim, kv_dtype)
    rank, rope = model.mla.kv_lora_rank, model.mla.qk_rope_head_dim
    latent = operators.latent_bytes(1.0, rank, rope, kv_dtype)
    return AttentionShape(
        flops_per_pair=operators.attention_flops(1.0, heads, rank + rope, rank),
        query_bytes=operators.query_bytes(1.0, heads, rank + rope, rank),
        kv_bytes=latent,
        kv_floor_bytes=latent,
        kv_heads=1,
    )


def _plain_shape(heads: int, kv_heads: int, head_dim: int, kv_dtype: str) -> AttentionShape:
    per_key = operators.kv_bytes(1.0, kv_heads, head_dim, kv_dtype)
    return AttentionShape(
        flops_per_pair=operators.attention_flops(1.0, heads, head_dim),
        query_bytes=operators.query_bytes(1.0, heads, head_dim),
        kv_bytes=per_key,
        kv_floor_bytes=per_key,
        kv_heads=kv_heads,
        group=heads / kv_heads,
        kv_elements=kv_heads * head_dim,
    )


class ChunkAttention(ChunkPrice, Protocol):
    """Attention of the chunks of a step, in layers with one window: a number for the hot path, arrays for breakdowns."""

    layers: int

    def split(
        self, tokens: Array, seqs: Array, pairs: Array, kv_tokens: Array, joined: Any = False
    ) -> tuple[Split, Array, Array]:
        """Seconds by bound, FLOPs and HBM bytes for arrays of steps; zero where there is no chunk."""
        ...


class TokenAttention(DecodePrice, Protocol):
    """Attention of the decodes of a step, in layers with one window: piecewise linear in the total context."""

    layers: int

    def split(self, n: Array, context: Array) -> tuple[Split, Array, Array]:
        """Seconds by bound, FLOPs and HBM bytes for arrays of steps; zero where nobody decodes."""
        ...


class PrefillAttention:
    """Chunk attention of `layers` layers with one window.

    `history` names the rule for keys that were cached before the chunk (no published table has such a row):

    - `work`: a chunk on a history costs what a fresh prompt of as many FLOPs, bytes and keys costs: each query tile
      walks all keys in series, which binds a short chunk of few heads on a long history.
    - `split-kv`: the history is split over the processors flash-decoding style: its FLOPs at the prefill's efficiency
      and its bytes at the decode kernel's overlap perfectly; only the chunk's own triangle pays as a fresh prompt does.

    A window caps pairs as if the chunks of the step were of equal length and history (exact for one chunk a step).
    """

    def __init__(
        self,
        shape: AttentionShape,
        fit: KernelFit,
        gpu: GpuSpec,
        peak: float,
        *,
        layers: int,
        window: int | None,
        history: str,
        decode_eff: float,
        slice_at: Mapping[str, float] | None = None,
    ) -> None:
        c = fit.constants
        self.shape, self.layers, self.window = shape, layers, window
        self.t0_s, self.exponent = c["t0_s"], c["exponent"]
        self.wave_s, self.chain_s_per_key = c.get("wave_s", 0.0), c.get("chain_s_per_key", 0.0)
        self.n_sm = gpu.n_sm
        self.store_s_per_token = float(forms.kv_store_s(1.0, shape.kv_elements, c, gpu))
        self.flops_per_s = c["compute_eff"] * peak
        self.bytes_per_s = c["memory_eff"] * gpu.hbm_bytes_per_s
        self.history_bytes_per_s = decode_eff * gpu.hbm_bytes_per_s
        self.split_history = history == "split-kv"
        self.peak, self.bandwidth = peak, gpu.hbm_bytes_per_s
        self.residual = fit.residual.at(slice_at) if fit.residual is not None and slice_at else None
        self._heads = slice_at or {"heads": 1.0, "kv_heads": 1.0}
        self._price = self._scalar()

    def _scalar(self) -> ChunkSeconds:
        axes = self.residual.axes if self.residual is not None else {}
        shape, heads = self.shape, self._heads
        return ChunkSeconds(
            layers=self.layers,
            window=self.window,
            split_history=self.split_history,
            t0_s=self.t0_s,
            exponent=self.exponent,
            wave_s=self.wave_s,
            chain_s_per_key=self.chain_s_per_key,
            n_sm=self.n_sm,
            store_s_per_token=self.store_s_per_token,
            flops_per_s=self.flops_per_s,
            bytes_per_s=self.bytes_per_s,
            history_bytes_per_s=self.history_bytes_per_s,
            peak=self.peak,
            bandwidth=self.bandwidth,
            flops_per_pair=shape.flops_per_pair,
            query_bytes=shape.query_bytes,
            kv_bytes=shape.kv_bytes,
            kv_floor_bytes=shape.kv_floor_bytes,
            expand_flops=shape.expand_flops,
            kv_heads=shape.kv_heads,
            tiles_per_query=shape.group / forms.QUERY_TILE,
            log_factor=self.residual.scalar2() if self.residual is not None else None,
            rows_per_prompt=heads["kv_heads"] if "kv_rows" in axes else 1.0,
            tiles_per_token=heads["heads"] / TILE_ROWS if "tiles" in axes else None,
        )

    def seconds(
        self, tokens: float, seqs: float, pairs: float, kv_tokens: float, joined: bool = False
    ) -> float:
        """Seconds of the chunks of one step (scalars); what `split` sums to. `joined`: the launch is the decodes'."""
        return self._price.seconds(tokens, seqs, pairs, kv_tokens, joined)

    def split(
        self, tokens: Array, seqs: Array, pairs: Array, kv_tokens: Array, joined: Any = False
    ) -> tuple[Split, Array, Array]:
        """Seconds by bound, FLOPs and HBM bytes for arrays of steps; zero where there is no chunk."""
        some = tokens > 0
        tokens_1, seqs_1 = np.where(some, tokens, 1.0), np.where(some, np.maximum(seqs, 1.0), 1.0)
        pairs, kv_tokens = np.where(some, pairs, 1.0), np.where(some, kv_tokens, 1.0)
        if self.window is not None:
            pairs, kv_tokens = self._windowed(tokens_1, seqs_1, pairs, kv_tokens)
        shape = self.shape
        history = np.maximum(kv_tokens - tokens_1, 0.0)
        expand = history * shape.expand_flops
        flops = pairs * shape.flops_per_pair + expand
        floor_bytes = tokens_1 * shape.query_bytes + kv_tokens * shape.kv_floor_bytes
        fresh, streamed = pairs, kv_tokens
        if self.split_history:
            triangle = np.minimum(tokens_1 * (tokens_1 / seqs_1 + 1.0) / 2.0, pairs)
            fresh = np.where(history > 0, triangle, pairs)
            streamed = np.where(history > 0, tokens_1, kv_tokens)
        compute = fresh * shape.flops_per_pair / self.flops_per_s
        memory = (tokens_1 * shape.query_bytes + streamed * shape.kv_bytes) / self.bytes_per_s
        chain = self.chain_s_per_key * streamed / seqs_1
        main = forms.p_norm(self.exponent, compute, memory, chain)
        tiles = forms.query_tiles(tokens_1, seqs_1, shape.kv_heads, shape.group)
        launch_s = self.wave_s * forms.tile_waves(tiles, self.n_sm) + np.where(joined, 0.0, self.t0_s)
        launch_s = launch_s + self.store_s_per_token * tokens_1
        terms = {"compute": compute, "kv_bandwidth": memory, "latency": chain}
        split = forms.split_by_largest(launch_s, main, terms)
        if self.residual is not None:
            heads = self._heads
            features = prefill_features(tokens_1, fresh, heads["heads"], heads["kv_heads"])
            split = forms.scaled(split, np.exp(self.residual.log_factor(features)))
        self._add_history(split, pairs - fresh, np.where(fresh < pairs, history, 0.0), expand)
        if self.residual is not None:
            floor_s = np.maximum(flops / self.peak, floor_bytes / self.bandwidth)
            split = forms.with_residual(split, 0.0, floor_s)
        keep = np.where(some, float(self.layers), 0.0)
        return forms.scaled(split, keep), flops * keep, floor_bytes * keep

    def _add_history(self, split: Split, old_pairs: Array, old_tokens: Array, expand: Array) -> None:
        """Book the streamed history (`split-kv`) and the expansion of a cached latent (MLA)."""
        compute = old_pairs * self.shape.flops_per_pair / self.flops_per_s
        memory = old_tokens * self.shape.kv_bytes / self.history_bytes_per_s
        longer = compute >= memory
        split["compute"] = split["compute"] + expand / self.flops_per_s + np.where(longer, compute, 0.0)
        split["kv_bandwidth"] = split["kv_bandwidth"] + np.where(longer, 0.0, memory)

    def _windowed(self, tokens: Any, seqs: Any, pairs: Any, kv_tokens: Any) -> tuple[Any, Any]:
        """Pairs and keys that a window leaves, for `seqs` equal chunks on equal histories."""
        window = self.window or 0
        chunk, done = tokens / seqs, (kv_tokens - tokens) / seqs
        capped = seqs * operators.windowed_pairs(chunk, done, window)
        kept = seqs * (chunk + _smaller(done, window - 1.0))
        return _smaller(capped, pairs), _smaller(kept, kv_tokens)


@dataclass(frozen=True, slots=True)
class WholePrompt:
    """The attention of a step whose only chunk is a whole prompt, by its tokens (a `token_costs.Part`)."""

    attention: ChunkAttention
    joined: bool
    kernel: str = "attention_prefill"

    @property
    def launches(self) -> int:
        """One a layer."""
        return self.attention.layers

    def split(self, tokens: Array) -> Split:
        """Seconds by bound."""
        return self._of(tokens)[0]

    def amounts(self, tokens: Array) -> tuple[Array, Array]:
        """FLOPs and HBM bytes on one GPU."""
        return self._of(tokens)[1:]

    def _of(self, tokens: Array) -> tuple[Split, Array, Array]:
        pairs = tokens * (tokens + 1.0) / 2.0
        return self.attention.split(tokens, np.ones(tokens.shape), pairs, tokens, self.joined)


def _smaller(a: Any, b: Any) -> Any:
    """Minimum that stays a plain float on the scalar path."""
    if isinstance(a, float) and isinstance(b, (int, float)):
        return min(a, float(b))
    return np.minimum(a, b)


class DecodeAttention:
    """Decode attention of `layers` layers with one window: piecewise linear in the total context for a fixed batch.

    By formula there is one piece, layers · (t0 + waves + query bytes / rate + context · slope). A residual layer bends
    it at its context knots; between them it stays linear, so that leaps remain arithmetic progressions.
    """

    def __init__(
        self,
        shape: AttentionShape,
        fit: KernelFit,
        gpu: GpuSpec,
        peak: float,
        *,
        layers: int,
        slice_at: Mapping[str, float] | None = None,
    ) -> None:
        c = fit.constants
        self.shape, self.layers, self.gpu = shape, layers, gpu
        self.constants = c
        self.bytes_per_s = c["memory_eff"] * gpu.hbm_bytes_per_s
        self.peak = peak
        self.memory_slope = shape.kv_bytes / self.bytes_per_s
        self.compute_slope = shape.flops_per_pair / peak
        self.slope = max(self.memory_slope, self.compute_slope)
        self.floor_slope = max(shape.kv_bytes / gpu.hbm_bytes_per_s, self.compute_slope)
        self.residual: ResidualGrid | None = None
        if fit.residual is not None and slice_at:
            self.residual = fit.residual.at(_within_heads(slice_at, fit.residual))
        self._cache: dict[int, Segments] = {}

    def segments(self, n: int) -> Segments:
        """Pieces of the step seconds over Σ context for `n` decodes."""
        found = self._cache.get(n)
        if found is None:
            found = self._cache[n] = self._make(n)
        return found

    def _make(self, n: int) -> Segments:
        fixed, slope = self._fixed_s(float(n)), self.slope
        if self.residual is None:
            return [], [self.layers * float(fixed)], [self.layers * slope]
        knots = np.asarray(self.residual.axes["context_tokens"]) * n
        means = knots / n
        rows = np.full(means.shape, float(n))
        shapes = {"batch": rows, "kv_rows": rows * self.shape.kv_heads, "context_tokens": means}
        log_factor = self.residual.log_factor(shapes)
        floor_s = knots * self.floor_slope + n * self.shape.query_bytes / self.gpu.hbm_bytes_per_s
        y = np.maximum((fixed + slope * knots) * np.exp(log_factor), floor_s)
        y = np.maximum.accumulate(y)  # where the residual has no data it must not make more context cheaper
        inner = np.diff(y) / np.diff(knots)
        slopes = np.concatenate(([inner[0]], inner, [max(slope, self.floor_slope)]))
        anchors = np.concatenate(([y[0]], y))
        at = np.concatenate(([knots[0]], knots))
        bases = anchors - slopes * at
        return (
            knots.tolist(),
            (self.layers * bases).tolist(),
            (self.layers * slopes).tolist(),
        )

    def _fixed_s(self, n: Array | float) -> Array:
        query = n * self.shape.query_bytes
        c, gpu = self.constants, self.gpu
        return np.asarray(
            forms.decode_attention_s(n, self.shape.kv_heads, query, 0.0, 0.0, c, gpu, self.peak), dtype=float
        )

    def split(self, n: Array, context: Array) -> tuple[Split, Array, Array]:
        """Seconds by bound, FLOPs and HBM bytes for arrays of steps; zero where nobody decodes."""
        shape, query = self.shape, n * self.shape.query_bytes
        split = forms.decode_attention(
            n,
            shape.kv_heads,
            query,
            context * shape.kv_bytes,
            context * shape.flops_per_pair,
            self.constants,
            self.gpu,
            self.peak,
        )
        keep = np.where(n > 0, float(self.layers), 0.0)
        split = forms.scaled(split, keep)
        if self.residual is not None:
            total = forms.total_s(split)
            split = forms.scaled(
                split, np.where(n > 0, self._piecewise(n, context), 0.0) / np.where(n > 0, total, 1)
            )
        flops = context * self.shape.flops_per_pair
        return split, flops * keep, (query + context * self.shape.kv_floor_bytes) * keep

    def _piecewise(self, n: Array, context: Array) -> Array:
        total = np.zeros(n.shape)
        for batch in np.unique(n[n > 0]):
            rows = n == batch
            ends, bases, slopes = self.segments(int(batch))
            piece = np.searchsorted(ends, context[rows], side="left")
            total[rows] = np.asarray(bases)[piece] + np.asarray(slopes)[piece] * context[rows]
        return total


def _within_heads(at: Mapping[str, float], residual: ResidualGrid) -> dict[str, float]:
    """The shape with no more KV heads than the data of the residual have.

    A decode kernel is one task a sequence and KV head (`kv_rows`); what is left to `kv_heads` is how the heads of a
    token lie side by side in memory, and the data end at 8 of them.
    """
    return {**at, "kv_heads": min(at["kv_heads"], residual.axes.get("kv_heads", (math.inf,))[-1])}
