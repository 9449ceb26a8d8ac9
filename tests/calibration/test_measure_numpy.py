"""The NumPy kernels compute what they claim to time."""

from __future__ import annotations

import numpy as np
import pytest
from stepline.calibration.measure.cases import Case, cases
from stepline.calibration.measure.grids import grid
from stepline.calibration.measure.kernels import Unsupported
from stepline.calibration.measure.numpy_kernels import (
    QUERY_BLOCK,
    NumpyKernels,
    attention,
    cpu_cache_bytes,
    rms_norm,
    rope,
    silu_mul,
)


@pytest.fixture(scope="module")
def kernels():
    return NumpyKernels(arena_bytes=64 * 2**20)


def plain_attention(q, k, v):
    s, heads, dim = q.shape
    group = heads // k.shape[1]
    out = np.empty_like(q)
    for h in range(heads):
        scores = q[:, h] @ k[:, h // group].T / np.sqrt(dim)
        hidden = np.arange(k.shape[0]) > np.arange(k.shape[0] - s, k.shape[0])[:, None]
        scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, h] = weights / weights.sum(1, keepdims=True) @ v[:, h // group]
    return out


@pytest.mark.parametrize(("new", "done"), [(1, 0), (1, 63), (40, 0), (40, 24), (QUERY_BLOCK + 30, 17)])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
def test_attention_is_causal_and_grouped(new, done, kv_heads):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((new, 8, 16), dtype=np.float32)
    k, v = (rng.standard_normal((new + done, kv_heads, 16), dtype=np.float32) for _ in range(2))
    np.testing.assert_allclose(attention(q, k, v), plain_attention(q, k, v), rtol=2e-4, atol=2e-5)


def test_elementwise_kernels():
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((3, 8), dtype=np.float32) for _ in range(2))
    normed = rms_norm(x, np.ones(8, np.float32))
    np.testing.assert_allclose((normed**2).mean(1), 1.0, rtol=1e-4)
    np.testing.assert_allclose(silu_mul(x, y), x / (1 + np.exp(-x)) * y, rtol=1e-5)
    angle = rng.uniform(0, 6, (3, 4)).astype(np.float32)
    turned = rope(x, np.concatenate((np.cos(angle), np.sin(angle)), axis=1))
    np.testing.assert_allclose((turned**2).sum(1), (x**2).sum(1), rtol=1e-5)  # a rotation keeps lengths
    assert not np.allclose(turned, x)


def test_every_case_of_the_quick_grid_has_a_kernel(kernels):
    for case in cases(grid("quick", gpu=False), "fp32"):
        if not case.message_bytes or case.message_bytes < 2**25:
            assert callable(kernels.make(case))


def test_calls_return_results_of_their_shape(kernels):
    assert kernels.make(Case("gemm", "fp32", m=3, n=5, k=7))().shape == (3, 5)
    decode = Case(
        "attention_decode", "fp32", heads=4, kv_heads=2, head_dim=8, batch=3, context_tokens=9, ragged=True
    )
    assert [o.shape for o in kernels.make(decode)()] == [(1, 4, 8)] * 3


def test_operands_of_consecutive_calls_do_not_overlap(kernels):
    a, b = kernels.take(1000), kernels.take(1000)
    assert not np.shares_memory(a, b)
    assert a.std() > 0.5


def test_what_numpy_lacks_is_said(kernels):
    with pytest.raises(Unsupported, match="no bf16"):
        kernels.make(Case("gemm", "bf16", m=1, n=1, k=1))
    with pytest.raises(Unsupported, match="all_reduce"):
        kernels.make(Case("all_reduce", "fp32", world=2, message_bytes=8))


def test_cache_is_found():
    assert 2**18 <= cpu_cache_bytes() <= 2**33
