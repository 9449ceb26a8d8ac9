"""The grids of the three sizes, on a GPU and on a CPU, with the weight shapes of the model catalogue."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from .cases import Grid, Size

BUDGET_S: dict[Size, float | None] = {"quick": 105.0, "standard": 450.0, "full": None}
"""Seconds of timing a size may take on a GPU: 2 and 8 minutes less start-up. A full run takes what it takes."""

CPU_BUDGET_S: dict[Size, float | None] = {"quick": 30.0, "standard": 240.0, "full": None}
CASE_S: dict[Size, float] = {"quick": 0.03, "standard": 0.08, "full": 0.25}
"""Seconds of samples of one case."""

CORE_MODELS = ("llama-3.1-8b", "llama-3.1-70b", "qwen3-32b", "mistral-7b")
"""Models whose weight shapes the quick and standard grids hold; the full one holds the whole catalogue's."""

TPS = (1, 2, 4, 8)

GPU_GRIDS: dict[Size, Grid] = {
    "quick": Grid(
        gemm_m=(1, 16, 64, 256, 1024, 4096),
        gemm_nk=(),
        heads=((32, 8, 128), (8, 1, 128)),
        prompts=((1, 128), (8, 128), (1, 512), (4, 512), (1, 2048), (4, 2048), (1, 4096), (1, 8192)),
        chunks=(128, 512, 2048),
        histories=(1024, 8192, 32768),
        decodes=((1, 1024), (8, 2048), (32, 4096), (128, 1024), (256, 1024)),
        mixed=((32, 2048, 512, 0), (32, 2048, 512, 8192)),
        rows=(1, 64, 1024, 8192),
        widths=(4096, 8192),
        samples=(1, 64, 256),
        vocab=128256,
        copies=(2**20, 2**26, 2**30),
        peak=8192,
    ),
    "standard": Grid(
        gemm_m=(1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192),
        gemm_nk=(
            (4096, 4096),
            (1024, 8192),
            (8192, 1024),
            (16384, 16384),
            (2048, 2048),
            (512, 4096),
            (4096, 512),
        ),
        heads=((32, 8, 128), (8, 1, 128), (64, 8, 128), (32, 32, 128), (16, 8, 64)),
        prompts=(
            (1, 128),
            (1, 512),
            (1, 1024),
            (1, 2048),
            (4, 512),
            (4, 2048),
            (16, 512),
            (1, 8192),
            (1, 16384),
        ),
        chunks=(128, 256, 512, 1024, 2048),
        histories=(512, 2048, 8192, 16384, 32768, 65536),
        decodes=tuple(
            (b, c) for b in (1, 2, 4, 8, 16, 32, 64, 128, 256) for c in (128, 512, 1024, 4096, 16384)
        ),
        mixed=tuple(
            (b, 2048, c, h) for b in (8, 32, 128) for c in (256, 512, 2048) for h in (0, 4096, 32768)
        ),
        rows=(1, 16, 64, 256, 1024, 4096, 8192),
        widths=(1024, 4096, 8192, 14336),
        samples=(1, 16, 64, 256),
        vocab=128256,
        copies=(2**16, 2**20, 2**23, 2**26, 2**28, 2**30),
        peak=8192,
    ),
}
_FULL = GPU_GRIDS["standard"]
GPU_GRIDS["full"] = Grid(
    gemm_m=(*_FULL.gemm_m, 24, 48, 384, 768, 1536, 3072, 6144, 16384),
    gemm_nk=(*_FULL.gemm_nk, *((n, k) for n in (256, 1024, 4096, 12288) for k in (256, 2048, 12288))),
    heads=(*_FULL.heads, (4, 1, 128), (16, 2, 128), (40, 8, 128), (12, 2, 128), (8, 8, 128), (16, 16, 256)),
    prompts=(*_FULL.prompts, (8, 1024), (2, 8192), (1, 4096), (64, 128), (1, 32768), (1, 65536)),
    chunks=(128, 192, 256, 384, 512, 768, 1024, 1536, 2048),
    histories=(256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536),
    decodes=tuple((b, c) for b in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
                  for c in (64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)),
    mixed=tuple((b, c, q, h) for b in (4, 16, 64, 256) for c in (512, 4096) for q in (128, 512, 2048)
                for h in (0, 2048, 16384, 65536)),
    rows=(1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384),
    widths=(512, 1024, 2048, 4096, 5120, 8192, 14336, 28672),
    samples=(1, 4, 16, 64, 128, 256, 512),
    vocab=128256,
    copies=tuple(2**i for i in range(12, 33, 2)),
    peak=8192,
)  # fmt: skip

CPU_GRIDS: dict[Size, Grid] = {
    "quick": Grid(
        gemm_m=(1, 4, 16, 64, 128),
        gemm_nk=((512, 512), (1024, 512), (512, 1536), (1536, 1024), (2048, 2048), (1024, 3072)),
        heads=((8, 2, 128),),
        prompts=((1, 16), (4, 16), (1, 32), (2, 32), (1, 64), (2, 64), (4, 64), (1, 96), (1, 128), (2, 128), (1, 192),
                 (1, 256), (1, 384)),
        chunks=(32, 128),
        histories=(128, 512, 1024),
        decodes=((1, 128), (1, 512), (1, 1024), (2, 512), (4, 256), (4, 1024), (8, 512), (16, 256), (16, 512)),
        mixed=((4, 256, 64, 256), (8, 512, 32, 512)),
        rows=(1, 16, 128),
        widths=(512, 2048),
        samples=(1, 16),
        vocab=16384,
        copies=(2**20, 2**24, 2**26),
        peak=1024,
    ),
    "standard": Grid(
        gemm_m=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
        gemm_nk=((512, 512), (1024, 512), (512, 1536), (1536, 1024), (2048, 2048), (1024, 3072), (4096, 1024),
                 (4096, 4096), (6144, 2048)),
        heads=((8, 2, 128), (4, 4, 128), (16, 4, 128)),
        prompts=((1, 16), (1, 32), (1, 64), (1, 128), (2, 128), (1, 256), (4, 256), (1, 512), (1, 1024)),
        chunks=(32, 64, 128, 256),
        histories=(128, 512, 1024, 2048, 4096),
        decodes=tuple((b, c) for b in (1, 2, 4, 8, 16, 32) for c in (128, 256, 512, 1024, 2048)),
        mixed=tuple((b, 512, q, h) for b in (4, 16) for q in (32, 128) for h in (0, 512, 2048)),
        rows=(1, 4, 16, 64, 256),
        widths=(512, 1024, 2048, 4096),
        samples=(1, 4, 16, 64),
        vocab=32768,
        copies=(2**16, 2**20, 2**23, 2**26, 2**27),
        peak=2048,
    ),
}  # fmt: skip
CPU_GRIDS["full"] = CPU_GRIDS["standard"]


def grid(size: Size, *, gpu: bool) -> Grid:
    """The grid of a size; on a GPU its GEMMs include those of the catalogue's models at TP 1 to 8, each shape once."""
    from dataclasses import replace

    if not gpu:
        return CPU_GRIDS[size]
    base = GPU_GRIDS[size]
    return replace(base, gemm_nk=tuple(dict.fromkeys((*base.gemm_nk, *catalogue_weights(size)))))


@lru_cache(maxsize=4)
def catalogue_weights(size: Size) -> tuple[tuple[int, int], ...]:
    """(n, k) of every linear layer and LM head of the size's models, as one GPU of TP 1–8 holds it, without repeats.

    Quick: Llama-3.1-8B at TP 1 and 70B at TP 8. Standard: `CORE_MODELS` at every TP. Full: the whole
    catalogue.
    """
    from stepline.sim.cost.catalogue import known_models

    models = {"quick": CORE_MODELS[:2], "standard": CORE_MODELS, "full": known_models()}[size]
    pairs = [(m, tp) for m in models for tp in TPS]
    if size == "quick":
        pairs = [(CORE_MODELS[0], 1), (CORE_MODELS[1], 8)]
    return tuple(dict.fromkeys(nk for model, tp in pairs for nk in _weights(model, tp)))


def _weights(model: str, tp: int) -> Iterable[tuple[int, int]]:
    from stepline.sim.cost.catalogue import load_model
    from stepline.sim.cost.operators import linears
    from stepline.traces.errors import ConfigError

    try:
        return [(linear.n, linear.k) for linear in linears(load_model(model), tp)]
    except (
        ConfigError
    ):  # a model whose heads this TP does not divide, or that has counts only, has no such shapes
        return []
