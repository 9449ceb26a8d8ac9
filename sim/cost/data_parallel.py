"""Data-parallel attention over shared experts: ranks with requests of their own that step together.

The ranks of vLLM's `--data-parallel-size` on an MoE model meet in every MoE layer, so that a step lasts as long as its
busiest rank. A step of the group is given as one `StepWork` of all ranks. Of n decodes the busiest rank has ⌈n / dp⌉ at
the mean context, of s chunks ⌈s / dp⌉ of mean length; experts see the tokens of all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .calibration import Calibration
from .decode_lines import Lines
from .forms import Array, Split
from .roofline import RooflineCostModel
from .shares import largest_share, largest_shares
from .specs import GpuSpec, ModelSpec
from .token_costs import CountTable
from .work import Progression, StepWork, plain


class DataParallelCostModel(RooflineCostModel):
    """Prices the steps of `dp` ranks of `tp` GPUs each; other arguments as `RooflineCostModel`.

    FLOPs and bytes are those of a GPU of the busiest rank.

    Raises:
        ConfigError: the model has no routed experts, or EP is neither 1 nor tp · dp.
    """

    def __init__(
        self, model: ModelSpec, gpu: GpuSpec, calibration: Calibration, *, dp: int, **options: Any
    ) -> None:
        self.dp = dp
        super().__init__(model, gpu, calibration, **options)
        self._group = CountTable(self.kernels.by_group_token(), self._pad_all)

    def _pad_all(self, tokens: Array) -> Array:
        """Tokens of all ranks once each is padded to a captured graph's size."""
        if self._pad is None:
            return tokens
        return np.maximum(self.dp * self._pad(np.ceil(tokens / self.dp)), tokens)

    # --- one number

    def step_s(self, work: StepWork) -> float:
        """Seconds of one step of the group."""
        rank = self.rank_work(plain(work))
        return self._price.hosted(rank, self._rank_s(rank, work))

    @property
    def decode_lines(self) -> Mapping[int, Lines] | None:  # type: ignore[override]  # None: `leap` is asked
        """None where steps depend on generated tokens: a rank's share of them is not one of the input tokens."""
        return None if self.generated_s else self._lines

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """See `RooflineCostModel.leap`."""
        if n_steps <= 1:
            return Progression(self.step_s(work), 0.0, 1)
        work = plain(work)
        rank = self.rank_work(work)
        share = rank.n_decode / work.n_decode
        return self._leap(self._rank_s(rank, work), rank, tuple([share * g for g in growth]), n_steps)

    def _decode_lines(self, n: int) -> list[tuple[float, float, float]]:
        """Lines in the context of all ranks."""
        ranked = -(-n // self.dp)
        share = ranked / n
        lines = self._lines_above(ranked, self._group_s(n))
        return [(fixed, slope * share, end / share) for fixed, slope, end in lines]

    def _rank_s(self, rank: StepWork, work: StepWork) -> float:
        return self._price.gpu_s(rank) + self._group_s(work.new_tokens)

    def _group_s(self, tokens: int) -> float:
        if tokens >= len(self._group.seconds):
            self._group.grow(tokens)
        return self._group.seconds[tokens]

    def rank_work(self, work: StepWork) -> StepWork:
        """What the busiest rank computes of a step of all."""
        return largest_share(work, self.dp, pieces=work.prefill_seqs)

    # --- many

    def _on_gpu(self, get: Mapping[str, Array]) -> tuple[dict[str, Split], Array, Array]:
        seconds, flops, moved = super()._on_gpu(self._ranked(get))
        self._add(seconds, flops, moved, self._group.at(get["prefill_tokens"] + get["n_decode"]))
        return seconds, flops, moved

    def _book_host(self, seconds: dict[str, Split], get: Mapping[str, Array]) -> None:
        super()._book_host(seconds, self._ranked(get))

    def _check_range(self, columns: Mapping[str, Array]) -> None:
        super()._check_range(self._ranked(columns))

    def _ranked(self, get: Mapping[str, Any]) -> dict[str, Any]:
        """Columns of the busiest rank."""
        return largest_shares(get, self.dp, pieces=get["prefill_seqs"])
