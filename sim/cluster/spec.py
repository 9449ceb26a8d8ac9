"""What a cluster is made of: replicas, their router, their clients. Plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from ..cost.lora import adapter_bytes
from ..cost.memory_ledger import kv_block_bytes
from ..engine.adapters import AdapterSlots
from ..engine.seats import Limits
from ..engine.swap import HostLink, SwapSpace
from .autoscaler import Autoscaling
from .clients import Replay
from .handoff import Disaggregation
from .offloading import Offloading
from .outages import Outages

if TYPE_CHECKING:
    from ..cost.specs import Dtype, EngineProfile, GpuSpec, ModelSpec
    from ..cost.work import CostModel
    from ..engine.acceptance import AcceptanceTape
    from ..engine.contracts import (
        AdmissionPolicy,
        BatchPolicy,
        EvictionPolicy,
        KvCompression,
        PreemptionPolicy,
        RoutingPolicy,
    )


@dataclass(frozen=True, slots=True, eq=False)
class ReplicaSpec:
    """One replica: a model on `pp` stages or `dp` ranks of `tp` GPUs behind an engine; limits and blocks are those of all ranks.

    `kv_blocks` as vLLM counts (null block included). `tape`: acceptances of the tokens that its decode steps verify. `max_loras`:
    slots of LoRA adapters (None: it serves none).
    """

    model: ModelSpec
    gpu: GpuSpec
    engine: EngineProfile
    cost_model: CostModel
    policy: BatchPolicy
    preemption: PreemptionPolicy
    eviction: Callable[[], EvictionPolicy] | None
    kv_blocks: int
    admission: Callable[[], AdmissionPolicy] | None = None
    tp: int = 1
    pp: int = 1
    dp: int = 1
    tape: AcceptanceTape | None = None
    max_loras: int | None = None
    max_lora_rank: int = 16
    block_size: int = 16
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 131_072
    long_prefill_token_threshold: int = 0
    name: str = "replica"
    usd_per_gpu_hour: float | None = None
    kv_dtype: Dtype = "bf16"
    compression: KvCompression | None = None
    offloading: Offloading | None = None

    @property
    def kv_block_bytes(self) -> float:
        """Bytes of a KV block on one GPU (of a pipeline, on the mean stage)."""
        whole = kv_block_bytes(self.model, tp=self.tp, kv_dtype=self.kv_dtype, block_size=self.block_size)
        return whole / self.pp

    def check(self) -> None:
        """Raise ConfigError for parts that do not go together."""
        if self.dp > 1:
            self._check_ranks()
        if self.tape is not None:
            self._check_speculation(self.tape)
        if self.offloading is not None:
            self._check_offloading()
        if self.max_loras is not None:
            self._check_lora()
        if self.compression is None:
            return
        name = f"--kv-compression {type(self.compression).__name__}"
        if self.eviction is not None:
            raise ConfigError(
                f"{name}: what is kept of a prompt cannot be shared by prefix; add --no-enable-prefix-caching"
            )
        if getattr(self.preemption, "mode", "recompute") == "swap":
            raise ConfigError(f"{name}: cannot be combined with --preemption ...:mode=swap")
        if self.policy.pads:
            raise ConfigError(
                f"{name}: cannot be combined with a padding policy ({type(self.policy).__name__})"
            )

    def _check_ranks(self) -> None:
        refused = {
            "--preemption ...:mode=swap": getattr(self.preemption, "mode", "recompute") == "swap",
            "--kv-offloading-size": self.offloading is not None,
        }
        for what, is_so in refused.items():
            if is_so:
                raise ConfigError(
                    f"--data-parallel-size: cannot be combined with {what}: ranks share no host link"
                )

    def _check_speculation(self, tape: AcceptanceTape) -> None:
        width = tape.law.n_drafted + 1
        if self.max_num_batched_tokens < width * self.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens: got {self.max_num_batched_tokens}, expected at least --max-num-seqs "
                f"({self.max_num_seqs}) times the {width} tokens that a step verifies"
            )
        refused = {
            "--kv-compression": self.compression is not None,
            "a model with sliding windows": self.model.windows != ((None, self.model.n_layers),),
            f"a padding policy ({type(self.policy).__name__})": self.policy.pads,
            "--data-parallel-size": self.dp > 1,
        }
        for what, is_so in refused.items():
            if is_so:
                raise ConfigError(f"--speculative-config: cannot be combined with {what}")

    def _check_lora(self) -> None:
        refused = {
            "--kv-compression": self.compression is not None,
            "--speculative-config": self.tape is not None,
            "--data-parallel-size": self.dp > 1,
            "a preemption policy that swaps": getattr(self.preemption, "mode", "recompute") == "swap",
            f"a batching policy that preempts for rank ({type(self.policy).__name__})": getattr(
                self.policy, "preemptive", False
            ),
        }
        for what, is_so in refused.items():
            if is_so:
                raise ConfigError(f"--enable-lora: cannot be combined with {what}")

    def adapter_slots(self) -> AdapterSlots | None:
        """Slots of LoRA adapters, each copied in over the GPU's own PCIe link (None: it serves none)."""
        if self.max_loras is None:
            return None
        load_s = adapter_bytes(self.model, self.max_lora_rank, self.tp) / self.gpu.pcie_bytes_per_s
        return AdapterSlots(self.max_loras, load_s)

    @property
    def gpus(self) -> int:
        """GPUs that it runs on."""
        return self.tp * self.pp * self.dp

    def _check_offloading(self) -> None:
        if self.eviction is None:
            raise ConfigError(
                "--kv-offloading-size: needs prefix caching: what is offloaded is found by its prefix"
            )
        if getattr(self.preemption, "mode", "recompute") == "swap":
            raise ConfigError(
                "--kv-offloading-size: cannot be combined with --preemption ...:mode=swap: what preempted sequences leave "
                "behind goes to the tiers already"
            )

    def swap_space(self) -> SwapSpace | None:
        """Host memory for preempted sequences, if the preemption policy swaps: each GPU over its own PCIe link."""
        rule = self.preemption
        if getattr(rule, "mode", "recompute") != "swap":
            return None
        swap_bytes = float(getattr(rule, "swap_gib", 4.0)) * 2**30
        block_s = self.kv_block_bytes / self.gpu.pcie_bytes_per_s + float(getattr(rule, "copy_s", 0.0))
        link = HostLink(block_s, overlap=bool(getattr(rule, "overlap", False)))
        return SwapSpace(int(swap_bytes / self.kv_block_bytes), link)

    @property
    def limits(self) -> Limits:
        """Its server flags."""
        return Limits(
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.max_model_len,
            self.long_prefill_token_threshold,
        )


@dataclass(frozen=True, slots=True, eq=False)
class ClusterSpec:
    """A cluster and its clients. `config` is what the result carries along as provenance.

    `scrape_interval_s`: the router knows its replicas only as of the last scrape (0: as they are).
    `outages`: replicas fail and come back; `autoscaling`: `replicas` are the most there may be.
    `disaggregation`: some replicas compute prompts, the others decode, chosen by `decode_routing` (None: `routing`).
    """

    replicas: tuple[ReplicaSpec, ...]
    routing: RoutingPolicy | None = None
    replay: Replay = "open"
    client_timeout_s: float | None = None
    max_concurrency: int | None = None
    record_steps: bool = False
    record_blocks: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    scrape_interval_s: float = 0.0
    disaggregation: Disaggregation | None = None
    decode_routing: RoutingPolicy | None = None
    outages: Outages | None = None
    autoscaling: Autoscaling | None = None

    def check(self) -> None:
        """Raise ConfigError unless it can run."""
        if not self.replicas:
            raise ConfigError("replicas: got none, expected at least one")
        for replica in self.replicas:
            if replica.max_num_batched_tokens < replica.max_num_seqs:
                raise ConfigError(
                    f"--max-num-batched-tokens: got {replica.max_num_batched_tokens}, expected at least "
                    f"--max-num-seqs ({replica.max_num_seqs}): every running sequence needs a token a step"
                )
            replica.check()
        self._check_fleet()
        if len(self.replicas) > 1 and self.routing is None:
            raise ConfigError(f"--routing: got none for {len(self.replicas)} replicas, expected a policy")

    def _check_fleet(self) -> None:
        if self.disaggregation is not None:
            self.disaggregation.check(self.replicas)
            if any(r.gpus != r.tp for r in self.replicas):
                raise ConfigError(
                    "--disaggregate: cannot be combined with --pipeline-parallel-size or --data-parallel-size"
                )
            if any(r.tape is not None for r in self.replicas):
                raise ConfigError("--disaggregate: cannot be combined with --speculative-config")
            if any(r.offloading is not None and r.offloading.stall for r in self.replicas):
                raise ConfigError(
                    "--kv-offloading-backend native: stall: cannot be combined with --disaggregate"
                )
            for flag, part in (("--failures", self.outages), ("--autoscale", self.autoscaling)):
                if part is not None:
                    raise ConfigError(f"{flag}: cannot be combined with --disaggregate")
        if self.outages is not None:
            self.outages.check(len(self.replicas))
        if self.autoscaling is not None:
            self.autoscaling.check()
            if self.autoscaling.most != len(self.replicas):
                raise ConfigError(
                    f"--autoscale: max is {self.autoscaling.most}, got {len(self.replicas)} replicas to choose from"
                )
        if self.routing is None and (self.outages is not None or self.autoscaling is not None):
            raise ConfigError("--routing: got none for a fleet that changes, expected a policy")
