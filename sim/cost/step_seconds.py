"""Seconds of one step as a number: what the engine asks before each step. Compiled (sim/compiled.py), so no NumPy here.

The same sums over arrays, for breakdowns, are in `attention_costs` and `roofline`; tests hold the two together.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Final, Protocol

from .operators import windowed_pairs

if TYPE_CHECKING:
    from .work import StepWork

CHUNKS_REMEMBERED: Final = 1 << 16


Segments = tuple[list[float], list[float], list[float]]
"""Piecewise-linear seconds over total context: ends (all but the last piece's), bases, slopes."""


class Table(Protocol):
    """Seconds by count (`token_costs.CountTable`)."""

    seconds: list[float]

    def grow(self, count: int) -> None:
        """Make `seconds[count]` exist, in the same list."""
        ...


class ChunkPrice(Protocol):
    """Attention of the chunks of a step, in layers with one window."""

    def seconds(self, tokens: float, seqs: float, pairs: float, kv_tokens: float, joined: bool) -> float:
        """Seconds of the chunks of one step. `joined`: the launch is the decodes'."""
        ...


class DecodePrice(Protocol):
    """Attention of the decodes of a step, in layers with one window: piecewise linear in the total context."""

    def segments(self, n: int) -> Segments:
        """Pieces of the step seconds over Σ context for `n` decodes."""
        ...


class LogFactor:
    """log(measured / formula) on a grid over two axes: the scalar twin of `residual.ResidualGrid.log_factor`.

    xs, ys: logarithms of the knots; values: of shape (len(xs), len(ys)); fade: log distance at which nothing is left.
    """

    def __init__(self, xs: list[float], ys: list[float], values: list[list[float]], fade: float) -> None:
        self.xs, self.ys, self.values, self.fade = xs, ys, values, fade

    def at(self, x: float, y: float) -> float:
        """The logarithm at the shape (x, y)."""
        xs, ys, fade = self.xs, self.ys, self.fade
        log_x, log_y = math.log(x if x > 1e-9 else 1e-9), math.log(y if y > 1e-9 else 1e-9)
        if not (xs[0] - fade < log_x < xs[-1] + fade and ys[0] - fade < log_y < ys[-1] + fade):
            return 0.0  # so far outside that nothing of it is left
        i, u, inside_x = _place(log_x, xs, fade)
        j, v, inside_y = _place(log_y, ys, fade)
        low, high = self.values[i], self.values[i + 1 if i < len(xs) - 1 else i]
        k = j + 1 if j < len(ys) - 1 else j
        below = (1.0 - v) * low[j] + v * low[k]
        above = (1.0 - v) * high[j] + v * high[k]
        return ((1.0 - u) * below + u * above) * (inside_x * inside_y)


def _place(x: float, knots: list[float], fade: float) -> tuple[int, float, float]:
    """Scalar twin of `ResidualGrid._locate`: cell, position in it, fade weight."""
    first, last = knots[0], knots[-1]
    if first <= x < last:  # most shapes
        low = bisect_right(knots, x) - 1
        return low, (x - knots[low]) / (knots[low + 1] - knots[low]), 1.0
    outside = first - x if x < first else x - last
    weight = 1.0 - outside / fade
    if weight < 0.0:
        weight = 0.0
    if len(knots) == 1:
        return 0, 0.0, weight
    return (0, 0.0, weight) if x < first else (len(knots) - 2, 1.0, weight)


class ChunkSeconds:
    """Attention of the chunks of one step by `attention_costs.PrefillAttention`, which says what each constant is."""

    def __init__(
        self,
        *,
        layers: int,
        window: int | None,
        split_history: bool,
        t0_s: float,
        exponent: float,
        wave_s: float,
        chain_s_per_key: float,
        n_sm: int,
        store_s_per_token: float,
        flops_per_s: float,
        bytes_per_s: float,
        history_bytes_per_s: float,
        peak: float,
        bandwidth: float,
        flops_per_pair: float,
        query_bytes: float,
        kv_bytes: float,
        kv_floor_bytes: float,
        expand_flops: float,
        kv_heads: int,
        tiles_per_query: float,
        log_factor: LogFactor | None,
        rows_per_prompt: float,
        tiles_per_token: float | None,
    ) -> None:
        self.layers, self.window, self.split_history = float(layers), window, split_history
        self.t0_s, self.exponent, self.wave_s, self.chain_s_per_key = t0_s, exponent, wave_s, chain_s_per_key
        self.n_sm, self.store_s_per_token = float(n_sm), store_s_per_token
        self.flops_per_s, self.bytes_per_s = flops_per_s, bytes_per_s
        self.history_bytes_per_s, self.peak, self.bandwidth = history_bytes_per_s, peak, bandwidth
        self.flops_per_pair, self.query_bytes, self.kv_bytes = flops_per_pair, query_bytes, kv_bytes
        self.kv_floor_bytes, self.expand_flops = kv_floor_bytes, expand_flops
        self.kv_heads, self.tiles_per_query = float(kv_heads), tiles_per_query
        self.log_factor, self.rows_per_prompt = log_factor, rows_per_prompt
        self.by_tiles = tiles_per_token is not None
        self.tiles_per_token = tiles_per_token or 0.0

    def seconds(self, tokens: float, seqs: float, pairs: float, kv_tokens: float, joined: bool) -> float:
        """Seconds of the chunks of one step; what `PrefillAttention.split` sums to."""
        if self.window is not None:
            chunk, done, window = tokens / seqs, (kv_tokens - tokens) / seqs, float(self.window)
            capped = seqs * windowed_pairs(chunk, done, window)
            kept = seqs * (chunk + (done if done < window - 1.0 else window - 1.0))
            pairs, kv_tokens = capped if capped < pairs else pairs, kept if kept < kv_tokens else kv_tokens
        history = kv_tokens - tokens if kv_tokens > tokens else 0.0
        fresh, streamed, extra = pairs, kv_tokens, history * self.expand_flops / self.flops_per_s
        if self.split_history and history > 0.0:
            triangle = tokens * (tokens / seqs + 1.0) / 2.0
            fresh, streamed = triangle if triangle < pairs else pairs, tokens
            computed = (pairs - fresh) * self.flops_per_pair / self.flops_per_s
            read = history * self.kv_bytes / self.history_bytes_per_s
            extra += computed if computed > read else read
        compute = fresh * self.flops_per_pair / self.flops_per_s
        memory = (tokens * self.query_bytes + streamed * self.kv_bytes) / self.bytes_per_s
        chain = self.chain_s_per_key * streamed / seqs
        main = compute if compute > memory else memory
        if chain > main:
            main = chain
        if self.exponent != math.inf:  # the largest term scaled out, as forms.p_norm does
            p = self.exponent
            main *= ((compute / main) ** p + (memory / main) ** p + (chain / main) ** p) ** (1.0 / p)
        tiles = seqs * self.kv_heads * math.ceil(tokens / seqs * self.tiles_per_query)
        waves = tiles / self.n_sm - 1.0
        seconds = main + self.wave_s * (waves if waves > 0.0 else 0.0) + (0.0 if joined else self.t0_s)
        seconds += self.store_s_per_token * tokens
        if self.log_factor is None:
            return self.layers * (seconds + extra)
        length = 2.0 * fresh / tokens - 1.0
        rows = self.tiles_per_token * tokens if self.by_tiles else self.rows_per_prompt * tokens / length
        wanted = seconds * math.exp(self.log_factor.at(rows, length)) + extra
        floor_flops = pairs * self.flops_per_pair + history * self.expand_flops
        floor_bytes = tokens * self.query_bytes + kv_tokens * self.kv_floor_bytes
        return self.layers * max(wanted, floor_flops / self.peak, floor_bytes / self.bandwidth)


class StepSeconds:
    """Seconds of one step by a `roofline.RooflineCostModel`, which says what each part is."""

    def __init__(
        self,
        tokens: Table,
        rows: Table,
        prompts: list[Table],
        prefill: list[ChunkPrice],
        decode: list[DecodePrice],
        *,
        queries: int,
        varlen: bool,
        host_s: float,
        host_per_seq_s: float,
        prompt_launches_s: float,
        launch_s: float,
        generated_s: float,
        overlap: bool,
    ) -> None:
        self.tokens, self.rows = tokens, rows
        self.by_token, self.by_row = tokens.seconds, rows.seconds
        self.prompts, self.prefill, self.decode = prompts, prefill, decode
        self.by_prompt = [table.seconds for table in prompts]
        self.queries, self.varlen = queries, varlen
        self.host_s, self.host_per_seq_s, self.prompt_launches_s = host_s, host_per_seq_s, prompt_launches_s
        self.launch_s, self.generated_s, self.overlap = launch_s, generated_s, overlap
        self.one_window = len(decode) == 1
        self.pieces: dict[int, Segments] = {}
        self.chunks: dict[tuple[int, int, float, float, bool], float] = {}

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step, host included."""
        return self.hosted(work, self.gpu_s(work))

    def hosted(self, work: StepWork, gpu_s: float) -> float:
        """Seconds of a step with its host time: behind the GPU's, or before it."""
        prefill_seqs: int = work[1]
        n_decode: int = work[4]
        generated: float = work[7]
        host = self.host_s + self.host_per_seq_s * (prefill_seqs + n_decode)
        if prefill_seqs:
            host += self.prompt_launches_s
        if self.overlap:
            return (host if host > gpu_s else gpu_s) + self.generated_s * generated
        return (gpu_s if gpu_s > self.launch_s else self.launch_s) + host + self.generated_s * generated

    def gpu_s(self, work: StepWork) -> float:
        """Seconds on the GPU. Amortised O(1): two table look-ups and a few multiplications."""
        prefill_tokens: int = work[0]
        n_decode: int = work[4]
        rows: int = work[6]
        tokens = prefill_tokens + self.queries * n_decode
        if tokens >= len(self.by_token):
            self.tokens.grow(tokens)
        if rows >= len(self.by_row):
            self.rows.grow(rows)
        total = self.by_token[tokens] + self.by_row[rows]
        if n_decode:
            contexts: tuple[float, ...] = work[5]
            if self.one_window:
                total += self._decodes_s(n_decode, contexts[0])
            else:
                for attention, context in zip(self.decode, contexts, strict=True):
                    total += _on_pieces(attention.segments(n_decode), context)
        if prefill_tokens:
            prefill_seqs: int = work[1]
            pairs: float = work[2]
            kv_tokens: float = work[3]
            joined = self.varlen and n_decode > 0
            if (
                kv_tokens == prefill_tokens
                and prefill_seqs == 1
                and 2.0 * pairs == kv_tokens * (kv_tokens + 1.0)
            ):
                by_prompt = self.by_prompt[int(joined)]
                if prefill_tokens >= len(by_prompt):
                    self.prompts[int(joined)].grow(prefill_tokens)
                total += by_prompt[prefill_tokens]
            else:
                total += self._chunks_s(prefill_tokens, prefill_seqs, pairs, kv_tokens, joined)
        return total

    def _decodes_s(self, n: int, context: float) -> float:
        pieces = self.pieces.get(n)
        if pieces is None:
            pieces = self.pieces[n] = self.decode[0].segments(n)
        return _on_pieces(pieces, context)

    def _chunks_s(self, tokens: int, seqs: int, pairs: float, kv_tokens: float, joined: bool) -> float:
        """Attention of the chunks of a step, remembered: those of a trace repeat."""
        key = (tokens, seqs, pairs, kv_tokens, joined)
        found = self.chunks.get(key)
        if found is None:
            if len(self.chunks) >= CHUNKS_REMEMBERED:
                self.chunks.clear()
            found = 0.0
            for attention in self.prefill:
                found += attention.seconds(tokens, seqs, pairs, kv_tokens, joined)
            self.chunks[key] = found
        return found


def _on_pieces(pieces: Segments, context: float) -> float:
    ends, bases, slopes = pieces
    piece = bisect_left(ends, context) if ends else 0
    return bases[piece] + slopes[piece] * context
