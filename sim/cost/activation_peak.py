"""The peak of an engine's profile run above the weights: which tensors of which phase are alive together."""

from __future__ import annotations

from typing import NamedTuple

from .memory_constants import MemoryConstants
from .parameters import plain_bytes
from .specs import Dtype, ModelSpec
from .weight_tensors import rope_table_bytes, vocabulary_bytes


class ActivationPeak(NamedTuple):
    """Bytes at the peak and the phase that made it: "sampler", "forward" or "compile"."""

    bytes: float
    phase: str


def activation_peak(
    model: ModelSpec,
    constants: MemoryConstants,
    *,
    tp: int,
    max_num_batched_tokens: int,
    max_num_seqs: int,
    weight_dtype: Dtype | None = None,
    first_stage: bool = True,
    last_stage: bool = True,
) -> ActivationPeak:
    """Peak of the profile run: a forward pass of the whole token budget, then a sampler pass of `max_num_seqs` rows.

    With T tokens, S sequences, D hidden, V vocabulary, F the FFN width of one GPU and e bytes an activation:

    - sampler: S V (e + sampler bytes) + copies × (T + S) D e; e = 2, else 4 for an fp32 model
    - forward: T 3 F e (gate, up, product; quantised input where 8-bit) + copies × T D e
    - compile: a copy of the largest table that a compiled kernel reads (this GPU's embedding shard; in multimodal
      models, whose embedding is looked up outside the graph, the rotary table) + 2 T D e

    On top of each: the library workspace, fused-MoE workspaces (they stay), and what a multimodal profile keeps.

    Args:
        model, constants, tp, weight_dtype: see `memory.kv_ledger`.
        max_num_batched_tokens: T; max_num_seqs: S.
        first_stage, last_stage: place in a pipeline; the tower runs on the first, the sampler on the last stage.
    """
    width = plain_bytes(weight_dtype or model.weight_dtype)
    hidden = max_num_batched_tokens * model.hidden_size * width
    moe = moe_workspace_bytes(model, tp=tp, tokens=max_num_batched_tokens, weight_dtype=weight_dtype)
    logits = max_num_seqs * model.vocab_size * (width + constants.sampler_bytes_per_logit)
    rows = (max_num_batched_tokens + max_num_seqs) * model.hidden_size * width
    phases = {
        "forward": ffn_bytes(model, tp=tp, tokens=max_num_batched_tokens, weight_dtype=weight_dtype)
        + constants.forward_copies * hidden
    }
    if last_stage:
        phases["sampler"] = logits + constants.sampler_copies * rows
    if first_stage and constants.compile_copy:
        phases["compile"] = _largest_table(model, tp, weight_dtype) + (3 if moe else 2) * hidden
    phase = max(phases, key=lambda name: phases[name])
    kept = moe + (image_bytes(model, max_num_batched_tokens) if first_stage else 0.0)
    return ActivationPeak(phases[phase] + kept + constants.workspace_bytes, phase)


def ffn_bytes(model: ModelSpec, *, tp: int, tokens: int, weight_dtype: Dtype | None = None) -> float:
    """Bytes of a dense FFN's intermediates: gate, up and their product (classic: two), plus a quantised copy."""
    stored = weight_dtype or model.weight_dtype
    if model.n_moe_layers == model.n_layers:
        return 0.0
    tensors = 3 if model.gated_ffn else 2
    quantised = 1 if stored in ("fp8", "int8") else 0
    return tokens * (model.ffn_size / tp) * (tensors * plain_bytes(stored) + quantised)


def moe_workspace_bytes(
    model: ModelSpec, *, tp: int, tokens: int, weight_dtype: Dtype | None = None
) -> float:
    """Bytes of the two workspaces of vLLM's fused experts: T k max(F, D) and T k max(2F, D), in bf16.

    They are allocated once and kept (WorkspaceManager). The MXFP4 kernels bring their own: none.
    """
    moe = model.moe
    if moe is None or (weight_dtype or model.weight_dtype) == "fp4":
        return 0.0
    width = moe.expert_size / tp
    return 2.0 * tokens * moe.top_k * (max(width, model.hidden_size) + max(2 * width, model.hidden_size))


def image_bytes(model: ModelSpec, tokens: int) -> float:
    """Bytes a multimodal profile run keeps: pixels and embeddings of as many images as fill the token budget."""
    vision = model.vision
    if vision is None:
        return 0.0
    n_images = max(1, tokens // vision.image_tokens)
    return 2.0 * n_images * (vision.image_values + vision.image_tokens * model.hidden_size)


def _largest_table(model: ModelSpec, tp: int, dtype: Dtype | None) -> float:
    rope = rope_table_bytes(model, dtype)
    return rope if model.vision else max(rope, vocabulary_bytes(model, tp, dtype))
