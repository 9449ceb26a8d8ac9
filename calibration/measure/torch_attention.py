"""Attention of FlashInfer, FlashAttention (vLLM's, then the package) and torch itself, each proved on a small case.

All take the same operands: packed sequences of different lengths, queries that see every key before them.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from .cases import Case
from .kernels import Call, Unsupported, lengths

if TYPE_CHECKING:
    from .torch_kernels import TorchKernels

PAGE_TOKENS = 16
"""Page of the KV cache: vLLM's default block size."""

WORKSPACE_BYTES = 256 * 2**20
"""Scratch memory that FlashInfer asks for."""

TOLERANCE = 3e-2
"""Largest error against float32, relative to the largest output: bf16 has 8 bits of mantissa (4e-3), times a few."""


@dataclass(frozen=True, slots=True)
class Library:
    """One implementation: NAME-VERSION and a builder of calls. A call returns its output tensor."""

    name: str
    build: Callable[[Any], Call]


@dataclass(frozen=True, slots=True)
class Attention:
    """Packed operands: q (Σ s, H, d), k and v (Σ c, K, d); lengths in tokens of each sequence, on the host."""

    torch: Any
    q: Any
    k: Any
    v: Any
    q_lens: tuple[int, ...]
    k_lens: tuple[int, ...]

    @property
    def uniform(self) -> bool:
        """All sequences have the same lengths."""
        return len(set(self.q_lens)) == 1 and len(set(self.k_lens)) == 1

    def starts(self, lens: tuple[int, ...]) -> Any:
        """Cumulative lengths with a leading zero, int32, on the device."""
        total = self.torch.tensor((0, *lens), dtype=self.torch.int32).cumsum(0, dtype=self.torch.int32)
        return total.to(self.q.device)


def operands(kernels: TorchKernels, case: Case) -> Attention:
    """Random operands of an attention case."""
    heads, kv_heads, dim = case.dims("heads", "kv_heads", "head_dim")
    q_lens, k_lens = sequence_lengths(case)
    take = kernels.operands.take
    q = take(sum(q_lens), heads, dim, dtype=case.dtype)
    k, v = (take(sum(k_lens), kv_heads, dim, dtype=case.dtype) for _ in range(2))
    return Attention(kernels.torch, q, k, v, q_lens, k_lens)


def sequence_lengths(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """New tokens and keys of each sequence; in a mixed case the decodes come first, as engines order them."""
    if case.kernel == "attention_prefill":
        batch, new, done = case.dims("batch", "query_tokens", "history_tokens")
        return (new,) * batch, (new + done,) * batch
    context = lengths(case)
    if case.kernel == "attention_decode":
        return (1,) * len(context), context
    chunks, new, done = case.dims("prefill_batch", "query_tokens", "history_tokens")
    return (1,) * len(context) + (new,) * chunks, (*context, *(new + done,) * chunks)


def libraries(kernels: TorchKernels, kernel: str) -> Iterable[Callable[[], Library]]:
    """Makers of the libraries to try, best first."""
    if kernels.on_gpu:
        yield lambda: _flashinfer(kernel)
        yield _vllm_flash
        yield _flash_attn
        yield lambda: Library(kernels._torch_name(), _torch_flash)
    yield lambda: Library(kernels._torch_name(), _torch_sdpa)


def first_right(
    kernels: TorchKernels, kernel: str, makers: Iterable[Callable[[], Library]], source: Any
) -> Library:
    """The first library that imports, runs and agrees with float32 on a small case; the others are noted with why not.

    Raises:
        Unsupported: none does.
    """
    small = source.small_case(kernel, kernels.dtype)
    for attempt, maker in enumerate(makers):
        name = f"{kernel}: choice {attempt + 1}"
        try:
            library = maker()
            name = f"{kernel}: {library.name}"
            given = source.operands(kernels, small)
            wanted = source.reference(given)
            output: Any = library.build(given)()
            got = output.float()
            error = float((got - wanted).abs().max() / wanted.abs().max())
            if error < TOLERANCE:
                return library
            kernels.notes[name] = f"off by {error:.2g} of the largest output"
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises, the next one is tried
            kernels.notes[name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    raise Unsupported(f"no library runs {kernel} correctly here")


def small_case(kernel: str, dtype: str) -> Case:
    """A case small enough to check: grouped heads, a history, unequal lengths where the kernel has them."""
    base = Case(kernel, dtype, heads=8, kv_heads=2, head_dim=64, batch=3, query_tokens=1, ragged=False)
    if kernel == "attention_prefill":
        return replace(base, batch=1, query_tokens=40, history_tokens=24, context_tokens=64)
    if kernel == "attention_decode":
        return replace(base, context_tokens=48, history_tokens=47)
    return replace(base, prefill_batch=1, query_tokens=20, history_tokens=12, decode_context_tokens=32)


def reference(given: Attention) -> Any:
    """The output in float32, sequence by sequence; shape (Σ s, H, d)."""
    torch, outs = given.torch, []
    group = given.q.shape[1] // given.k.shape[1]
    for q, k, v in _sequences(given):
        q, k, v = (x.float().transpose(0, 1) for x in (q, k, v))
        scores = q @ k.repeat_interleave(group, 0).transpose(1, 2) * q.shape[-1] ** -0.5
        seen = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).tril(k.shape[1] - q.shape[1])
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        outs.append((weights @ v.repeat_interleave(group, 0)).transpose(0, 1))
    return torch.cat(outs)


def _sequences(given: Attention) -> Iterable[tuple[Any, Any, Any]]:
    q, k, v = given.q.split(given.q_lens), given.k.split(given.k_lens), given.v.split(given.k_lens)
    return zip(q, k, v, strict=True)


# --- the libraries


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _require(module: str) -> None:
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ImportError(f"{module.partition('.')[0]} is not installed")


def pages(given: Attention, order: Any | None = None) -> tuple[Any, Any, Any, Any]:
    """Keys and values in pages of `PAGE_TOKENS` at scattered places, as a paged cache has them.

    Returns: cache (pages, 2, PAGE_TOKENS, K, d); int32 page indices in order of the sequences, their starts
    (batch + 1), tokens in each sequence's last page.
    """
    torch, device = given.torch, given.q.device
    counts = tuple(-(-n // PAGE_TOKENS) for n in given.k_lens)
    total = sum(counts)
    where = torch.randperm(total, generator=torch.Generator().manual_seed(0)) if order is None else order
    where = where.to(device=device, dtype=torch.int32)
    cache = torch.zeros(total, 2, PAGE_TOKENS, *given.k.shape[1:], dtype=given.k.dtype, device=device)
    at = 0
    for (_, k, v), count in zip(_sequences(given), counts, strict=True):
        for half, x in enumerate((k, v)):
            padded = torch.zeros(count * PAGE_TOKENS, *x.shape[1:], dtype=x.dtype, device=device)
            padded[: x.shape[0]] = x
            cache[where[at : at + count].long(), half] = padded.view(count, PAGE_TOKENS, *x.shape[1:])
        at += count
    last = torch.tensor([(n - 1) % PAGE_TOKENS + 1 for n in given.k_lens], dtype=torch.int32, device=device)
    return cache, where, given.starts(counts), last


def _flashinfer(kernel: str) -> Library:
    _require("flashinfer")
    import flashinfer

    def build(given: Attention) -> Call:
        cache, indices, starts, last = pages(given)
        scratch = given.torch.empty(WORKSPACE_BYTES, dtype=given.torch.uint8, device=given.q.device)
        heads, kv_heads, dim = given.q.shape[1], given.k.shape[1], given.q.shape[2]
        if kernel == "attention_decode":
            decode = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                scratch, "NHD", use_tensor_cores=heads > kv_heads
            )
            decode.plan(starts, indices, last, heads, kv_heads, dim, PAGE_TOKENS, q_data_type=given.q.dtype)
            return lambda: decode.run(given.q, cache)
        prefill = flashinfer.BatchPrefillWithPagedKVCacheWrapper(scratch, "NHD")
        q_starts = given.starts(given.q_lens)
        prefill.plan(
            q_starts,
            starts,
            indices,
            last,
            heads,
            kv_heads,
            dim,
            PAGE_TOKENS,
            causal=True,
            q_data_type=given.q.dtype,
        )
        return lambda: prefill.run(given.q, cache)

    return Library(f"flashinfer-{_version('flashinfer-python')}", build)


def _vllm_flash() -> Library:
    _require("vllm")
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    def build(given: Attention) -> Call:
        q_starts = given.starts(given.q_lens)
        used = given.torch.tensor(given.k_lens, dtype=given.torch.int32, device=given.q.device)
        keys, values, table = _block_table(given)
        return lambda: flash_attn_varlen_func(
            q=given.q, k=keys, v=values, cu_seqlens_q=q_starts, max_seqlen_q=max(given.q_lens), seqused_k=used,
            max_seqlen_k=max(given.k_lens), causal=True, block_table=table,
        )  # fmt: skip

    return Library(f"vllm-{_version('vllm')}", build)


def _block_table(given: Attention) -> tuple[Any, Any, Any]:
    cache, indices, starts, _ = pages(given)
    counts = (starts[1:] - starts[:-1]).tolist()
    rows = indices.split(counts)
    table = given.torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return cache[:, 0].contiguous(), cache[:, 1].contiguous(), table


def _flash_attn() -> Library:
    _require("flash_attn")
    from flash_attn import flash_attn_varlen_func

    def build(given: Attention) -> Call:
        q_starts, k_starts = given.starts(given.q_lens), given.starts(given.k_lens)
        most_q, most_k = max(given.q_lens), max(given.k_lens)
        return lambda: flash_attn_varlen_func(
            given.q, given.k, given.v, q_starts, k_starts, most_q, most_k, causal=True
        )

    return Library(f"flash-attn-{_version('flash-attn')}", build)


def _torch_flash(given: Attention) -> Call:
    """The variable-length FlashAttention-2 inside torch; the last query of a sequence sees all its keys."""
    q_starts, k_starts = given.starts(given.q_lens), given.starts(given.k_lens)
    most_q, most_k = max(given.q_lens), max(given.k_lens)
    forward = given.torch.ops.aten._flash_attention_forward
    return lambda: forward(
        given.q, given.k, given.v, q_starts, k_starts, most_q, most_k, 0.0, True, False
    )[0]  # fmt: skip


def _torch_sdpa(given: Attention) -> Call:
    """scaled_dot_product_attention: sequences of one shape in one call, else one call a shape."""
    if not given.uniform:
        return _by_shape(given)
    torch = given.torch
    batch, heads, dim = len(given.q_lens), given.q.shape[1], given.q.shape[2]
    q = given.q.view(batch, -1, heads, dim).transpose(1, 2)
    k, v = (x.view(batch, -1, x.shape[1], dim).transpose(1, 2) for x in (given.k, given.v))
    new, keys = q.shape[2], k.shape[2]
    options: dict[str, Any] = {"enable_gqa": heads != k.shape[1]}
    if new == keys:
        options["is_causal"] = True
    elif new > 1:
        options["attn_mask"] = torch.ones(new, keys, dtype=torch.bool, device=q.device).tril(keys - new)
    attend = torch.nn.functional.scaled_dot_product_attention
    return lambda: attend(q, k, v, **options).transpose(1, 2).reshape(-1, heads, dim)


def _by_shape(given: Attention) -> Call:
    """One call for each run of sequences of the same shape, in order."""
    calls, parts = [], list(_sequences(given))
    start = 0
    while start < len(parts):
        stop, shape = start, (given.q_lens[start], given.k_lens[start])
        while stop < len(parts) and (given.q_lens[stop], given.k_lens[stop]) == shape:
            stop += 1
        q, k, v = (given.torch.cat([p[i] for p in parts[start:stop]]) for i in range(3))
        lens = given.q_lens[start:stop], given.k_lens[start:stop]
        calls.append(_torch_sdpa(Attention(given.torch, q, k, v, *lens)))
        start = stop
    return lambda: given.torch.cat([call() for call in calls])
