"""Specs: the shape of a model, the datasheet of a GPU, the habits of an engine. Plain values, no arithmetic on time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

Dtype = Literal["bf16", "fp16", "fp32", "fp8", "int8", "int4", "fp4"]


@dataclass(frozen=True, slots=True)
class MoeSpec:
    """Mixture-of-experts FFN: `n_experts` routed experts of width `expert_size`, `top_k` of them a token.

    `n_shared` experts of width `shared_size` see every token. The first `n_dense_layers` layers keep a dense FFN
    (`ModelSpec.ffn_size`); after them every `layer_step`-th layer is MoE (Llama-4 Maverick: 2), the others dense.
    `gated`: experts have three matrices (GLaM's have two beside gated dense layers). `bias`: router and experts carry
    biases (gpt-oss). `shared_gate`: a D-vector gates the shared experts (Qwen1.5-MoE).
    """

    n_experts: int
    top_k: int
    expert_size: int
    n_shared: int = 0
    shared_size: int = 0
    n_dense_layers: int = 0
    layer_step: int = 1
    gated: bool = True
    bias: bool = False
    shared_gate: bool = False


@dataclass(frozen=True, slots=True)
class MlaSpec:
    """Multi-head latent attention (DeepSeek-V2): ranks and per-head dims, names as in the HF config."""

    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """The image side of a multimodal model, as far as it takes memory: tokens an image of the largest size becomes
    (`image_tokens`) and values of its pixel tensor (`image_values`). Its weights are in `ModelSpec.extra_params`.
    """

    image_tokens: int
    image_values: int


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are picked, as in a `generation_config.json`: temperature 0 is greedy, top_p 1 and top_k 0 keep all."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0

    @property
    def truncated(self) -> bool:
        """Whether only the likeliest tokens may be drawn, which takes a sort of the logits."""
        return self.temperature > 0 and (self.top_p < 1.0 or self.top_k > 0)

    @property
    def penalised(self) -> bool:
        """Whether logits of tokens that have occurred are changed, which takes counts over the whole vocabulary."""
        return self.repetition_penalty != 1.0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """Shape of a decoder-only transformer, as its HF `config.json` states it.

    `attention_windows`: groups of layers by attention window, ((window_tokens or None, n_layers), ...), summing to
    `n_layers`; one group (None, n_layers) for full attention. `gated_ffn`: three FFN matrices (SwiGLU, GeGLU), else two.
    `weight_dtype` is what the linear layers store, `attention_dtype` what those of attention store where that differs
    (gpt-oss quantises its experts only); embedding, LM head, router and norms stay bf16 (fp32 in an fp32 model).
    Activations and KV are bf16 unless told otherwise. `norms_per_layer`: norms of width D in a layer (Gemma-2/3: 4).
    `extra_params`: weights held but not priced (vision tower and projector, attention sinks). `rope_rows`: positions
    in the rotary tables (the config's range, which `max_model_len` may cut). `chunked_attention`: the windows are
    chunks (Llama-4); they are priced and held as sliding windows of the chunk's length, an upper bound.
    `encoder_layers`: layers of an encoder, for counts only (Switch); `unpriced` says why a model has counts but no
    step price, "" for all that can be simulated.
    `params_published` (total, active) are the publisher's figures with `source`; None where none is stated.
    """

    name: str
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_model_len: int
    gated_ffn: bool = True
    tie_embeddings: bool = False
    qkv_bias: bool = False
    linear_bias: bool = False
    qk_norm: bool = False
    norm: Literal["rms", "layer"] = "rms"
    learned_positions: int = 0
    attention_windows: tuple[tuple[int | None, int], ...] = ()
    moe: MoeSpec | None = None
    mla: MlaSpec | None = None
    weight_dtype: Dtype = "bf16"
    attention_dtype: Dtype | None = None
    norms_per_layer: int = 2
    extra_params: int = 0
    rope_rows: int = 0
    chunked_attention: bool = False
    vision: VisionSpec | None = None
    encoder_layers: int = 0
    unpriced: str = ""
    sampling: Sampling = Sampling()
    params_published: tuple[float, float] | None = None
    source: str = ""

    @property
    def windows(self) -> tuple[tuple[int | None, int], ...]:
        """Attention windows with their number of layers; never empty."""
        return self.attention_windows or ((None, self.n_layers),)

    @property
    def n_moe_layers(self) -> int:
        """Layers with routed experts; 0 for a dense model."""
        return 0 if self.moe is None else (self.n_layers - self.moe.n_dense_layers) // self.moe.layer_step


@dataclass(frozen=True, slots=True)
class GpuSpec:
    """Datasheet of one accelerator. Rates are dense peaks per second; `None` in `peak_flops` means unsupported.

    `memory_bytes` is what the driver reports as total; `nvlink_bytes_per_s` is per direction (PCIe where there is no
    NVLink). `usd_per_hour` and `tdp_w` are for planning and dated in `source`.
    """

    name: str
    peak_flops: dict[str, float]
    hbm_bytes_per_s: float
    memory_bytes: int
    n_sm: int
    nvlink_bytes_per_s: float
    pcie_bytes_per_s: float
    tdp_w: float
    usd_per_hour: float | None = None
    l2_bytes: int = 0
    aliases: tuple[str, ...] = ()
    source: str = ""


@dataclass(frozen=True, slots=True)
class EngineProfile:
    """How an engine schedules and what its host side costs: each field a named, sourced mechanism, off in `ideal`.

    pipeline_depth          1: step k+1 is planned when step k starts (async scheduling); 0: when step k ends
    step_host_s             host seconds of each step ...
    step_host_per_seq_s     ... and per sequence in it
    prompt_launch_s         ... and per kernel launch where it has prompts, if no CUDA graph covers such steps
    host_overlaps_gpu       True: a step lasts max(GPU, host); False: GPU + host
    request_ingest_s        API server and tokeniser before the queue, per request ...
    request_ingest_per_token_s  ... and per prompt token
    output_delay_s          from the end of a step to the token at the client
    tp_step_host_s          extra host seconds per step when TP > 1
    cuda_graph_sizes        captured batch sizes (batches up to the largest are padded to the next); empty: no padding
    max_graph_tokens        largest batch that runs as a captured graph
    chunk_history           rule for chunked-prefill attention on a cached history, see `cost.operators`
    defaults                engine's own server defaults by vLLM flag name
    step_gpu_s              GPU seconds of each step outside the model: input preparation, copies, small launches
    tp_step_gpu_s           the same, extra when TP > 1 (the GPUs of a step wait for the slowest)
    generated_token_s       host seconds of each step, not hidden, a token that its sequences have generated so far
    serving_kernels         price GEMMs and decode attention as timed with operands in memory, not in L2
    varlen_attention        prompt chunks and decodes of a step share one attention launch a layer
    moe_skew                exponent of the experts' popularity in served traffic (see `operators.distinct_experts`)
    sampler_kernels         price the kernels that pick tokens after the LM head
    truncation_per_vocab_s  top-p or top-k sampling, seconds a vocabulary entry whatever the batch ...
    truncation_per_logit_s  ... and seconds a logit (rows x vocabulary)
    output_per_seq_s        output path of one sequence of a step; a first token waits for those before it
    tp_output_delay_s       extra on the way of a token to the client when TP > 1
    eager_launch_s          host seconds of a kernel launch outside a CUDA graph (`--enforce-eager`)
    kv_layer_copy_s         what sending or taking in one layer of one request's KV adds to a step, with a connector that works
                            inside the forward pass (see `cluster.handoff.Disaggregation`)
    store_scan_s            host seconds of each step a sequence whose KV finds no room in the pool in host memory, and a block
                            of that pool (see `storing.StoringCostModel`)
    memory                  version whose memory constants hold, see `cost.memory_constants`
    """

    name: str
    pipeline_depth: int = 0
    step_host_s: float = 0.0
    step_host_per_seq_s: float = 0.0
    prompt_launch_s: float = 0.0
    host_overlaps_gpu: bool = False
    tp_step_host_s: float = 0.0
    request_ingest_s: float = 0.0
    request_ingest_per_token_s: float = 0.0
    output_delay_s: float = 0.0
    cuda_graph_sizes: tuple[int, ...] = ()
    max_graph_tokens: int = 0
    chunk_history: Literal["work", "split-kv"] = "work"
    step_gpu_s: float = 0.0
    tp_step_gpu_s: float = 0.0
    generated_token_s: float = 0.0
    serving_kernels: bool = False
    varlen_attention: bool = False
    moe_skew: float = 0.0
    sampler_kernels: bool = False
    truncation_per_vocab_s: float = 0.0
    truncation_per_logit_s: float = 0.0
    output_per_seq_s: float = 0.0
    tp_output_delay_s: float = 0.0
    eager_launch_s: float = 0.0
    kv_layer_copy_s: float = 0.0
    store_scan_s: float = 0.0
    defaults: dict[str, float | int | str | bool] = field(default_factory=dict)
    memory: str = "vllm-0.19"
    source: str = ""

    def for_tp(self, tp: int) -> EngineProfile:
        """The profile of one replica, with what TP > 1 adds to the way of a token to the client."""
        if tp == 1 or not self.tp_output_delay_s:
            return self
        return replace(
            self, output_delay_s=self.output_delay_s + self.tp_output_delay_s, tp_output_delay_s=0.0
        )
