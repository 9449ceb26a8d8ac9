"""How one replica spreads over GPUs, and what its server's flags become then."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from ..cost.weight_tensors import ExpertSplit
from ..engine.seats import Limits

if TYPE_CHECKING:
    from ..cost.specs import ModelSpec
    from .config import RunConfig


NODE_GPUS = 8
"""GPUs on one NVLink switch of a DGX/HGX node (H100, H200, B200)."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A replica's GPUs: `pp` stages, or `dp` ranks, of `tp` GPUs; `ep`: GPUs that hold whole experts (1: they are cut)."""

    tp: int
    pp: int
    dp: int
    ep: int

    @staticmethod
    def of(config: RunConfig, model: ModelSpec) -> Layout:
        """The layout that a configuration asks for.

        Raises:
            ConfigError: it does not go with the model.
        """
        tp, dp = config.tensor_parallel_size, config.data_parallel_size
        if model.n_heads % tp:
            raise ConfigError(
                f"--tensor-parallel-size: got {tp}, expected a divisor of {model.name}'s {model.n_heads} heads"
            )
        if dp > 1 and model.moe is None:
            raise ConfigError(
                f"--data-parallel-size: got {dp}: {model.name} has no experts for its ranks to share, so that they are "
                f"replicas: give --replicas {dp}"
            )
        pp = config.pipeline_parallel_size
        if pp > 1:
            _check_pipeline(config)
        return Layout(tp, pp, dp, _expert_gpus(config, model, tp * dp))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the result must know."""
        gpus = self.tp * self.pp * self.dp
        if gpus <= NODE_GPUS:
            return ()
        return (
            f"{gpus} GPUs of a replica exchange as if all were on one NVLink; links between nodes are not modelled",
        )

    @property
    def experts(self) -> ExpertSplit | None:
        """How the memory ledger spreads the experts (None: over the TP group, as all else)."""
        if self.ep > 1:
            return ExpertSplit(dealt=self.ep, cut=1)
        return ExpertSplit(dealt=1, cut=self.tp * self.dp) if self.dp > 1 else None

    def demanded(self, config: RunConfig) -> dict[str, Any]:
        """What the cost model must take, beyond TP."""
        found: dict[str, Any] = {}
        if self.dp > 1:
            found["dp"] = self.dp
        if self.ep > 1:
            found["ep"] = self.ep
        if config.expert_skew is not None:
            found["moe_skew"] = config.expert_skew
        return found

    def blocks(self, of_a_rank: int) -> int:
        """KV blocks of all ranks, one null block among them."""
        return self.dp * (of_a_rank - 1) + 1

    def limits(self, one: Limits, kv_tokens: int) -> Limits:
        """Limits of all ranks taken together; a sequence stays on one rank, within its budget and its `kv_tokens`.

        A round of a pipeline has a token budget for each of its micro-batches; the seats are those of all (vLLM V1).
        """
        if self.pp > 1:
            return replace(one, max_num_batched_tokens=self.pp * one.max_num_batched_tokens)
        if self.dp == 1:
            return one
        tokens = one.max_num_batched_tokens
        return Limits(
            self.dp * one.max_num_seqs,
            self.dp * tokens,
            min(one.max_model_len, kv_tokens),
            min(one.long_prefill_token_threshold or tokens, tokens),
        )


def _check_pipeline(config: RunConfig) -> None:
    refused = {
        "--data-parallel-size": config.data_parallel_size > 1,
        "--enable-expert-parallel": config.enable_expert_parallel,
        "--speculative-config": config.speculative_config is not None,
        "--enable-lora": config.enable_lora,
    }
    for what, is_so in refused.items():
        if is_so:
            raise ConfigError(f"--pipeline-parallel-size: cannot be combined with {what}")


def _expert_gpus(config: RunConfig, model: ModelSpec, world: int) -> int:
    if config.expert_skew is not None and model.moe is None:
        raise ConfigError(f"--expert-skew: {model.name} has no experts")
    if not config.enable_expert_parallel:
        return 1
    if model.moe is None:
        raise ConfigError(f"--enable-expert-parallel: {model.name} has no experts")
    if world == 1:
        raise ConfigError(
            "--enable-expert-parallel: got one GPU, expected --tp or --data-parallel-size above 1"
        )
    if model.moe.n_experts % world:
        raise ConfigError(
            f"--enable-expert-parallel: got {world} GPUs, expected a divisor of {model.name}'s "
            f"{model.moe.n_experts} experts"
        )
    return world
