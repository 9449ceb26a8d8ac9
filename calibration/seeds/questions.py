"""The five self-check questions of the teaching texts, answered with computed numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from stepline.sim.cost.parameters import weight_bytes

from .accounting import account, step_shape, total
from .arithmetic import gpu, kv, model, ridge
from .pricing import cost_model, decode_work, mixed_work

GB = 1e9


@dataclass(frozen=True, slots=True)
class Answer:
    """A question in short, the computed numbers (unit in the name), the answer in words."""

    question: str
    numbers: dict[str, float]
    text: str


def fp8_decode() -> Answer:
    """70B at batch 1 on H200: what fp8 weights make of 32 tokens/s, and why less than twice."""
    name, context, measured = "llama-3-70b", 1024, 32.0
    floor = (weight_bytes(model(name), "bf16") + kv(name, context)) / gpu("h200").hbm_bytes_per_s
    floor8 = (weight_bytes(model(name), "fp8") + kv(name, context)) / gpu("h200").hbm_bytes_per_s
    step16 = cost_model(name, "h200").step_s(decode_work(1, context))
    step8 = cost_model(name, "h200", "fp8").step_s(decode_work(1, context))
    n = {
        "bf16_floor_ms": floor * 1e3,
        "bf16_measured_ms": 1e3 / measured,
        "fp8_floor_ms": floor8 * 1e3,
        "halved_ms": 1e3 / measured / 2,
        "bf16_priced_ms": step16 * 1e3,
        "fp8_priced_ms": step8 * 1e3,
        "undershoot_frac": 1 - (1 / step8) / (2 * measured),
    }
    text = (
        f"Halving 31.2 ms would give {n['halved_ms']:.1f} ms (64 tok/s). The fp8 floor is "
        f"{n['fp8_floor_ms']:.1f} ms: LM head, norms and KV stay in 16 bits. The calibrated kernels give "
        f"{n['bf16_priced_ms']:.1f} ms in bf16 and {n['fp8_priced_ms']:.1f} ms in fp8, "
        f"{n['undershoot_frac']:.0%} fewer tokens/s than the doubling: launches, attention, norms and the "
        "quantising of activations take the same time as before, the shorter kernels reach a smaller "
        "share of the bandwidth, and the host's work per step (not counted here) does not shrink either."
    )
    return Answer("70B decodes at 32 tok/s at batch 1 on H200 in 16 bits; what does fp8 give?", n, text)


def long_context_fit() -> Answer:
    """70B, 64 Ki context, fp8 KV, batch 8, int4 weights: does it fit in 141 GB?"""
    name, card = "llama-3-70b", 141e9
    cached = 8 * kv(name, 64 * 1024, "fp8")
    weights = weight_bytes(model(name), "int4")
    n = {"kv_gb": cached / GB, "weights_gb": weights / GB, "together_gb": (cached + weights) / GB}
    n["left_gb"] = card / GB - n["together_gb"]
    verb = "fits" if n["left_gb"] > 0 else "does not fit"
    text = (
        f"{n['kv_gb']:.1f} GB of KV and {n['weights_gb']:.1f} GB of int4 weights (scales, 16-bit LM head "
        f"and embedding included) make {n['together_gb']:.1f} GB: it {verb} in 141 GB, with "
        f"{n['left_gb']:.0f} GB for activations, CUDA graphs and everything else. In bf16 the KV alone "
        "would be twice as large."
    )
    return Answer(
        "70B, 64 k context, fp8 KV, batch 8: how much KV, does it fit beside int4 weights?", n, text
    )


def spiky_tpot() -> Answer:
    """p99 TPOT of 200 ms over a p50 of 30 ms with idle tensor cores: which regime, which experiment."""
    name, batch, context, prompt = "llama-3-70b", 16, 4096, 8192
    cost = cost_model(name, "h100-sxm", tp=4)
    plain = cost.step_s(decode_work(batch, context))
    whole = cost.step_s(mixed_work(batch, context, prompt))
    chunk = cost.step_s(mixed_work(batch, context, 512, prompt - 512))
    flops = cost.explain(decode_work(batch, context)).flops
    n = {
        "decode_step_ms": plain * 1e3,
        "step_with_8k_prompt_ms": whole * 1e3,
        "step_with_512_chunk_ms": chunk * 1e3,
        "spike_ratio": whole / plain,
        "tensor_use_frac": flops / plain / gpu("h100-sxm").peak_flops["bf16"],
    }
    text = (
        "Scheduler-bound: the median step is memory-bound decode (70B on 4 H100, 16 sequences of 4 k: "
        f"{n['decode_step_ms']:.0f} ms at {n['tensor_use_frac']:.1%} of the tensor peak), and the tail is "
        "decodes that share a step with somebody's long prompt: an 8 k prompt makes it "
        f"{n['step_with_8k_prompt_ms']:.0f} ms, {n['spike_ratio']:.0f} times as long. First experiment: "
        "chunked prefill with a small token budget; a 512-token chunk beside the same decodes takes "
        f"{n['step_with_512_chunk_ms']:.0f} ms. Then prefix caching, since agents resend their history, "
        "and a look for preemptions."
    )
    return Answer("p99 TPOT 200 ms, p50 30 ms, tensor use below 10 %: which regime, what first?", n, text)


def doubled_tpot() -> Answer:
    """32 decodes in a batch double TPOT: the two causes, with the context and the chunk that would each do it."""
    name, batch = "llama-3-70b", 32
    cost = cost_model(name, "h100-sxm", tp=4)
    alone = cost.step_s(decode_work(1, 1024))
    same = cost.step_s(decode_work(batch, 1024))
    context = _smallest(lambda c: cost.step_s(decode_work(batch, c)) >= 2 * alone, 2**20)
    chunk = _smallest(lambda c: cost.step_s(mixed_work(batch, 1024, c)) >= 2 * alone, 2**17)
    n = {
        "batch_1_ms": alone * 1e3,
        "batch_32_ms": same * 1e3,
        "doubling_context_tokens": float(context),
        "doubling_chunk_tokens": float(chunk),
        "ridge_tokens": ridge("h100-sxm"),
    }
    text = (
        f"Not the weights: 32 tokens lie far below the knee of {n['ridge_tokens']:.0f}, and 32 decodes of "
        f"1 k context take {n['batch_32_ms']:.1f} ms against {n['batch_1_ms']:.1f} ms for one (70B on 4 "
        "H100). Either (1) the KV cache: its reads grow with batch times context and double the step at "
        f"{n['doubling_context_tokens']:.0f} tokens a sequence (try fp8 KV, GQA or MLA models, a shorter "
        f"context); or (2) prompts in the same steps: a chunk of {n['doubling_chunk_tokens']:.0f} tokens "
        "beside the decodes doubles it (try a smaller chunk budget). TPOT against context at a fixed "
        "batch, and the prefill tokens of each step, tell them apart."
    )
    return Answer("Batching 32 decodes doubles TPOT from 35 to 70 ms: which two causes?", n, text)


def moe_against_dense() -> Answer:
    """DeepSeek-V3.1 (37B active, MLA) against a dense 70B: decode ceilings of the same GPU's bandwidth."""
    context = 4096
    n: dict[str, float] = {}
    for name, short in (("deepseek-v3", "deepseek"), ("llama-3-70b", "dense")):
        spec = replace(model(name), weight_dtype="fp8")
        for batch in (1, 64):
            step = total(account(spec, step_shape("decode", batch, context)))
            rate = batch / ((step.weight_bytes + step.kv_bytes) / gpu("h200").hbm_bytes_per_s)
            n[f"{short}_batch_{batch}_tok_per_s"] = rate
            n[f"{short}_batch_{batch}_weights_gb"] = step.weight_bytes / GB
        n[f"{short}_kv_token_kb"] = kv(name, 1) / 1e3
    first = n["deepseek_batch_1_tok_per_s"] / n["dense_batch_1_tok_per_s"]
    many = n["deepseek_batch_64_tok_per_s"] / n["dense_batch_64_tok_per_s"]
    n |= {"batch_1_ratio": first, "batch_64_ratio": many}
    text = (
        "Both in fp8 at 4 k context, from an H200's bandwidth alone: at batch 1 the MoE reads "
        f"{n['deepseek_batch_1_weights_gb']:.0f} GB a step against {n['dense_batch_1_weights_gb']:.0f} "
        f"GB, a ceiling of {n['deepseek_batch_1_tok_per_s']:.0f} against "
        f"{n['dense_batch_1_tok_per_s']:.0f} tok/s ({first:.1f} times). At batch 64 the tokens touch most "
        f"experts: {n['deepseek_batch_64_weights_gb']:.0f} GB a step, {many:.2f} times the dense model's "
        "ceiling, until the batch is large enough to share them; its latent KV "
        f"({n['deepseek_kv_token_kb']:.0f} kB a token against {n['dense_kv_token_kb']:.0f} kB) helps it "
        "at long contexts. And it must fit: 671 GB of experts need eight such GPUs, the dense model one."
    )
    return Answer(
        "DeepSeek-V3.1 (37B active, MLA) against a dense 70B: decode ceiling on the same GPU?", n, text
    )


QUESTIONS: tuple[Callable[[], Answer], ...] = (
    fp8_decode,
    long_context_fit,
    spiky_tpot,
    doubled_tpot,
    moe_against_dense,
)
"""The questions in the order of the texts, numbered from 1 on the command line."""


def _smallest(holds: Callable[[int], bool], high: int) -> int:
    """Smallest whole number in 1 .. high that satisfies a monotone predicate, `high` if none does."""
    low = 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
