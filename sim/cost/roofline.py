"""The default cost model: every kernel of a step priced by its fitted form, TP-aware, never below the floor."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping

import numpy as np
from stepline.traces.errors import ConfigError

from . import attention_backends, operators
from .attention_backends import AttentionBackend
from .attention_costs import ChunkAttention, WholePrompt
from .breakdown import add_seconds, explained
from .calibration import Calibration
from .decode_lines import DecodeLines, Lines, above
from .forms import Array, Split
from .kernel_parts import KernelParts, compute_peak
from .ranges import RangeLog
from .specs import EngineProfile, GpuSpec, ModelSpec
from .step_seconds import StepSeconds
from .token_costs import CountTable, graph_padding
from .work import Progression, StepCost, StepWork, context_column, plain

__all__ = ["IDEAL", "RooflineCostModel", "compute_peak", "context_column"]

IDEAL = EngineProfile(name="ideal")
HISTORY_RULES = ("work", "split-kv")


class RooflineCostModel:
    """Prices the steps of one model on a TP group of one GPU type (implements `work.CostModel`).

    A mixed step is its linear layers on all tokens, then prefill attention, then decode attention (vLLM V1). Times of
    everything that depends on the token count alone are tabulated; decode attention is affine in the context.

    Args:
        model, gpu: shapes and datasheet.
        calibration: kernel constants; see `calibration.find_calibration`.
        tp: tensor-parallel size; weights, heads and FFN are divided by it, two all-reduces a layer added.
        engine: host seconds, CUDA-graph sizes, history rule.
        kv_dtype: dtype of cached keys and values; None: bf16 (fp32 for an fp32 model).
        ep: GPUs over which routed experts are spread whole (1, or all of the group); replaces one all-reduce a MoE layer
            by two all-to-alls.
        moe_skew: exponent of the experts' popularity; 0 is balanced; None: the engine profile's.
        chunk_history: `work` or `split-kv`, overrides the engine's rule (see `attention_costs.PrefillAttention`).
        fused_elementwise: norms take the residual adds along (torch.compile); False launches them apart.
        attention_backend: see `attention_backends.BACKENDS`.
        enforce_eager: no CUDA graphs: batches are not padded, and the host launches every kernel, which the GPU may
            have to wait for (`EngineProfile.eager_launch_s` each).
        residual: use the calibration's residual layers where it has them.
        queries: tokens of a sequence in a decode step (a verification of drafted tokens); its keys are read once.
        extra_linears: linear layers beside the model's own (the input projection of a drafting head).

    Raises:
        ConfigError: TP or EP does not divide the model, an unknown rule or back end, or an engine that has no eager mode.
        CalibrationError: the calibration lacks a kernel that this model needs.
    """

    dp = 1
    """Ranks that share the experts (`data_parallel`)."""

    def __init__(
        self,
        model: ModelSpec,
        gpu: GpuSpec,
        calibration: Calibration,
        *,
        tp: int = 1,
        engine: EngineProfile = IDEAL,
        kv_dtype: str | None = None,
        ep: int = 1,
        moe_skew: float | None = None,
        chunk_history: str | None = None,
        fused_elementwise: bool = True,
        attention_backend: AttentionBackend = "auto",
        enforce_eager: bool = False,
        residual: bool = True,
        queries: int = 1,
        extra_linears: tuple[operators.Linear, ...] = (),
    ) -> None:
        self.model, self.gpu, self.tp, self.ep, self.engine = model, gpu, tp, ep, engine
        self.calibration = calibration if residual else calibration.without_residuals()
        self.kv_dtype = kv_dtype or ("fp32" if model.weight_dtype == "fp32" else "bf16")
        self.moe_skew = engine.moe_skew if moe_skew is None else moe_skew
        self.queries = queries
        self.attention_backend, self.enforce_eager = attention_backend, enforce_eager
        self.history_rule = (
            chunk_history or attention_backends.HISTORY_RULES.get(attention_backend) or engine.chunk_history
        )
        self.notes: list[str] = list(calibration.notes)
        if calibration.gpu != gpu.name and not calibration.notes:
            self.notes.append(
                f"calibration {calibration.id} is of another GPU than {gpu.name}: efficiencies carried over"
            )
        self.kernels = KernelParts(
            model=model,
            gpu=gpu,
            calibration=self.calibration,
            engine=engine,
            kv_dtype=self.kv_dtype,
            moe_skew=self.moe_skew,
            history_rule=self.history_rule,
            tp=tp,
            dp=self.dp,
            ep=ep,
            queries=queries,
            extra_linears=extra_linears,
            attention_backend=attention_backend,
            fused_elementwise=fused_elementwise,
        )
        self.notes += self.kernels.notes()
        self._ranges = RangeLog()
        self._check()
        self._check_shapes()
        graphs = () if enforce_eager else engine.cuda_graph_sizes
        self._pad = graph_padding(graphs, engine.max_graph_tokens)
        self._tokens = CountTable(self.kernels.by_token(), self._pad)
        self._rows = CountTable(self.kernels.by_row())
        self._prefill, self._decode = self.kernels.attention()
        self._launch_s = self.launches * engine.eager_launch_s if enforce_eager else 0.0
        self._prompts = [
            CountTable([WholePrompt(p, joined) for p in self._prefill]) for joined in (False, True)
        ]
        self._host_s = engine.step_host_s + (engine.tp_step_host_s if tp > 1 else 0.0)
        self._host_per_seq_s = engine.step_host_per_seq_s
        self._prompt_launches_s = self.launches * engine.prompt_launch_s
        self._overlap = engine.host_overlaps_gpu
        self.generated_s = engine.generated_token_s
        if self._overlap:
            self._host_s += self._launch_s
        self._joined = engine.varlen_attention
        self._lines = DecodeLines(self._decode_lines)
        self._price = StepSeconds(
            self._tokens,
            self._rows,
            list(self._prompts),
            list(self._prefill),
            list(self._decode),
            queries=queries,
            varlen=self._joined,
            host_s=self._host_s,
            host_per_seq_s=self._host_per_seq_s,
            prompt_launches_s=self._prompt_launches_s,
            launch_s=self._launch_s,
            generated_s=self.generated_s,
            overlap=self._overlap,
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the result must know: transferred constants, work outside the data's range."""
        return (*self.notes, *self._ranges.notes())

    @property
    def launches(self) -> int:
        """Kernels of one step of decodes: all layers' (attention and the write of its keys among them), the embedding,
        LM head and sampler. Chunks that share the step's launches add none."""
        parts = (*self._tokens.parts, *self._rows.parts)
        naive = self.attention_backend == "naive"
        attention = (attention_backends.NAIVE_LAUNCHES if naive else 1) + 1
        return sum(part.launches for part in parts) + attention * self.model.n_layers + 1

    # --- the hot path

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step. Amortised O(1): two table look-ups and a few multiplications."""
        try:
            return self._price.step_s(work)
        except TypeError:
            return self._price.step_s(plain(work))

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """Pure-decode steps in arithmetic progression, ending where a form bends (residual knot, host crossed)."""
        if n_steps <= 1:
            return Progression(self.step_s(work), 0.0, 1)
        try:
            gpu_s = self._price.gpu_s(work)
        except TypeError:
            work = plain(work)
            gpu_s = self._price.gpu_s(work)
        return self._leap(gpu_s, work, growth, n_steps)

    def _leap(self, gpu_s: float, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """The progression that begins with `gpu_s` on the GPU."""
        delta, n = 0.0, n_steps
        for attention, context, grown in zip(self._decode, work.context_tokens, growth, strict=True):
            ends, _, slopes = attention.segments(work.n_decode)
            piece = bisect_left(ends, context)
            delta += slopes[piece] * grown
            if piece < len(ends) and grown > 0:
                n = min(n, int((ends[piece] - context) // grown) + 1)
        host = self._host_s + self._host_per_seq_s * work.n_decode
        least, after = (host, 0.0) if self._overlap else (self._launch_s, host)
        after += self.generated_s * work.generated_tokens
        more = self.generated_s * (growth[0] if self.queries > 1 else work.n_decode)
        if gpu_s < least:
            if delta > 0:
                n = min(n, int((least - gpu_s) // delta) + 1)
            return Progression(least + after, more, n)
        if delta < 0 and least:
            n = min(n, int((gpu_s - least) // -delta) + 1)
        return Progression(gpu_s + after, delta + more, n)

    @property
    def decode_lines(self) -> Mapping[int, Lines]:
        """Pure-decode steps of a model with one attention window as lines in Σ context (see `work.CostModel`).

        Host time that hides GPU time is in them, and `generated_s` a token of the context, inputs among it.
        """
        return self._lines

    def _decode_lines(self, n: int) -> list[tuple[float, float, float]]:
        return self._lines_above(n, 0.0)

    def _lines_above(self, n: int, more_s: float) -> list[tuple[float, float, float]]:
        """Lines of `n` decodes with `more_s` more on the GPU, each (fixed, slope, end)."""
        tokens = self.queries * n
        self._tokens.grow(tokens)
        self._rows.grow(n)
        gpu_s = self._tokens.seconds[tokens] + self._rows.seconds[n] + more_s
        host_s = self._host_s + self._host_per_seq_s * n
        least, after = (host_s, 0.0) if self._overlap else (self._launch_s, host_s)
        ends, bases, slopes = self._decode[0].segments(n)
        lines: list[tuple[float, float, float]] = []
        start = 0.0
        for base, slope, end in zip(bases, slopes, [*ends, math.inf], strict=True):
            lines += above(least, gpu_s + base, slope, start, end)
            start = end
        return [(fixed + after, slope + self.generated_s, end) for fixed, slope, end in lines]

    # --- breakdowns

    def explain(self, work: StepWork) -> StepCost:
        """Seconds of one step by kernel and bound; they sum to `step_s(work)`."""
        return explained(self.explain_many, work)

    def explain_many(self, columns: Mapping[str, Array]) -> tuple[dict[str, Split], Array, Array]:
        """Breakdown of many steps at once.

        Args:
            columns: `StepWork` fields as arrays, shape (steps,); `context_tokens` is that of the first attention
                window, `context_tokens_1`, ... of the others. For a leap pass the mean context over its steps.

        Returns:
            {kernel: {bound: seconds}}, FLOPs and HBM bytes on one GPU, each of shape (steps,). The seconds of a step
            sum to `step_s`.
        """
        get = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
        breakdown = self._on_gpu(get)
        self._book_host(breakdown[0], get)
        self._check_range(get)
        return breakdown

    def _on_gpu(self, get: Mapping[str, Array]) -> tuple[dict[str, Split], Array, Array]:
        """The breakdown without the host's part."""
        seconds, flops, bytes_ = self._tokens.at(get["prefill_tokens"] + self.queries * get["n_decode"])
        self._add(seconds, flops, bytes_, self._rows.at(get["logits_rows"]))
        for prefill in self._prefill:
            self._add(seconds, flops, bytes_, self._chunk_split(prefill, get))
        for index, decode in enumerate(self._decode):
            split, f, b = decode.split(get["n_decode"], get[context_column(index)])
            self._add(seconds, flops, bytes_, ({"attention_decode": split}, f, b))
        return seconds, flops, bytes_

    def _book_host(self, seconds: dict[str, Split], get: Mapping[str, Array]) -> None:
        """Add what the GPU waits for the host."""
        host = (
            self._host_s
            + self._host_per_seq_s * (get["prefill_seqs"] + get["n_decode"])
            + self._prompt_launches_s * (get["prefill_seqs"] > 0)
        )
        if self._overlap or self._launch_s:
            gpu_s = sum((s for split in seconds.values() for s in split.values()), np.zeros(host.shape))
            late = np.maximum((host if self._overlap else self._launch_s) - gpu_s, 0.0)
            host = late if self._overlap else host + late
        host = host + self.generated_s * get.get("generated_tokens", np.zeros(host.shape))
        seconds.setdefault("host", {})["host"] = host

    def _chunk_split(
        self, prefill: ChunkAttention, get: Mapping[str, Array]
    ) -> tuple[dict[str, Split], Array, Array]:
        """Breakdown of the chunks' attention; the steps that have none are left out of the arithmetic."""
        rows = np.flatnonzero(get["prefill_tokens"])
        split, flops, bytes_ = prefill.split(
            get["prefill_tokens"][rows],
            get["prefill_seqs"][rows],
            get["attention_pairs"][rows],
            get["prefill_kv_tokens"][rows],
            self._joined & (get["n_decode"][rows] > 0),
        )

        def spread(some: Array) -> Array:
            every = np.zeros(get["prefill_tokens"].shape)
            every[rows] = some
            return every

        return {"attention_prefill": {b: spread(s) for b, s in split.items()}}, spread(flops), spread(bytes_)

    @staticmethod
    def _add(
        seconds: dict[str, Split], flops: Array, bytes_: Array, more: tuple[dict[str, Split], Array, Array]
    ) -> None:
        add_seconds(seconds, more[0])
        flops += more[1]
        bytes_ += more[2]

    # --- construction

    def _check(self) -> None:
        attention_backends.check_backend(self.attention_backend)
        self.kernels.check()
        if self.history_rule not in HISTORY_RULES:
            raise ConfigError(
                f"chunk_history: got {self.history_rule!r}, expected one of {', '.join(HISTORY_RULES)}"
            )
        if self.enforce_eager and not self.engine.eager_launch_s:
            raise ConfigError(
                f"enforce_eager: engine {self.engine.name} has no eager mode: its eager_launch_s is 0"
            )

    def _check_shapes(self) -> None:
        """Note linear layers and heads whose shapes no timing covers."""
        gemm = self.kernels.fit("gemm")
        for linear in operators.linears(self.model, self.tp):
            self._ranges.check(linear.name, gemm, n=linear.n, k=linear.k)
        heads, kv_heads = operators.heads_per_gpu(self.model, self.tp)
        for kernel, fit in zip(
            ("attention_prefill", "attention_decode"), self.kernels.attention_fits(), strict=True
        ):
            shapes = {"heads": heads, "kv_heads": kv_heads, "head_dim": self.model.head_dim}
            self._ranges.check(kernel, fit, **shapes if self.model.mla is None else {"heads": heads})
        if self.model.moe is not None:
            width = operators.ceil_div(self.model.moe.expert_size * self.ep, self.kernels.world)
            self._ranges.check("moe", self.kernels.fit("moe"), n=width, k=self.model.hidden_size)

    def _check_range(self, columns: Mapping[str, Array]) -> None:
        """Note, once each, work outside the range of the data behind the constants."""
        prefill, decode = self.kernels.attention_fits()
        n, chunks = columns["n_decode"], columns["prefill_seqs"]
        self._ranges.check("gemm", self.kernels.fit("gemm"), m=columns["prefill_tokens"] + self.queries * n)
        some, fresh = n > 0, chunks > 0
        self._ranges.check("attention_decode", decode, batch=n[some])
        self._ranges.check(
            "attention_decode", decode, context_tokens=columns["context_tokens"][some] / n[some]
        )
        lengths = columns["prefill_kv_tokens"][fresh] / chunks[fresh]
        self._ranges.check("attention_prefill", prefill, query_tokens=lengths)
        self._ranges.check_chunks(columns, self.history_rule)
