"""What picks the next token: sampling settings of a model, and the seconds its kernels take after the LM head."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

import numpy as np
from stepline.traces.errors import ConfigError

from . import forms
from .calibration import KernelFit
from .forms import Array, Split
from .specs import EngineProfile, GpuSpec, Sampling

GREEDY = Sampling(temperature=0.0)
NEUTRAL = Sampling()

GREEDY_BYTES, GREEDY_LAUNCHES = 10.0, 2
"""A logit is cast to fp32 (2 read, 4 written) and read by the argmax (4)."""

RANDOM_BYTES, RANDOM_LAUNCHES = 42.0, 7
"""Cast (6), temperature (8), softmax (8), exponential noise (4), division (12), argmax (4): the kernels of
vLLM V1 `Sampler.forward` and `random_sample`, counted at fp32."""


PENALTY_BYTES, PENALTY_LAUNCHES = 85.0, 13
"""Counts of prompt and of output tokens in int64 (zeroed 8, read for the mask 8, mask 1: twice), the repetition kernel (logits
in and out 8, masks 2), frequency (counts 8, product 4, difference 12) and presence (mask 1, product 4, difference 12), whose
factors are 0 but multiplied all the same: vLLM V1 `apply_penalties` (`model_executor/layers/utils.py`)."""


def sampling_of(model: str) -> Sampling:
    """Sampling defaults that a model's repository ships in `generation_config.json`; engines of the vLLM family apply
    them to requests that state none. Neutral (temperature 1, nothing truncated) for models without such a file."""
    row = _table().get(model)
    return NEUTRAL if row is None else row


@lru_cache(maxsize=1)
def _table() -> dict[str, Sampling]:
    text = (resources.files(__package__) / "data" / "sampling.toml").read_text(encoding="utf-8")
    rows = tomllib.loads(text)["sampling"]
    found: dict[str, Sampling] = {}
    for row in rows:
        values = {k: v for k, v in row.items() if k not in ("models", "source")}
        found |= dict.fromkeys(row["models"], Sampling(**values))
    return found


def chosen_sampling(model_default: Sampling, generation_config: str) -> Sampling:
    """`auto`: the model's own defaults; `vllm`: neutral; `greedy`: as if every client asked for temperature 0.

    Raises:
        ConfigError: another word.
    """
    known = {"auto": model_default, "vllm": NEUTRAL, "greedy": GREEDY}
    if generation_config not in known:
        raise ConfigError(
            f"--generation-config: got {generation_config!r}, expected one of {', '.join(known)}"
        )
    return known[generation_config]


@dataclass(frozen=True, slots=True)
class SamplerPart:
    """Sampling of r rows over a vocabulary of V, on every GPU of the group alike (logits are gathered first).

    Seconds = launches · t0 + r V bytes / rate (the elementwise form), and with top-p or top-k
    + V · `truncation_per_vocab_s` + r V · `truncation_per_logit_s`: sorting and the masked passes move
    some 300 bytes a logit, and the cumulative sum walks a row with one block, so it takes its time however few rows.
    """

    vocab: int
    sampling: Sampling
    engine: EngineProfile
    fit: KernelFit
    gpu: GpuSpec
    kernel: str = "lm_head"

    @property
    def launches(self) -> int:
        """Kernels a step; a sort for top-p or top-k is one more, its scan another."""
        drawn = GREEDY_LAUNCHES if self.sampling.temperature == 0.0 else RANDOM_LAUNCHES
        return (
            drawn
            + (2 if self.sampling.truncated else 0)
            + (PENALTY_LAUNCHES if self.sampling.penalised else 0)
        )

    def split(self, tokens: Array) -> Split:
        """See `token_costs.Part.split`; `tokens` are rows."""
        greedy = self.sampling.temperature == 0.0
        per_logit = GREEDY_BYTES if greedy else RANDOM_BYTES
        launches = GREEDY_LAUNCHES if greedy else RANDOM_LAUNCHES
        if self.sampling.penalised:
            per_logit, launches = per_logit + PENALTY_BYTES, launches + PENALTY_LAUNCHES
        bytes_ = tokens * self.vocab * per_logit
        split = forms.elementwise(bytes_, launches, self.fit.constants, self.gpu)
        if self.sampling.truncated:
            split["latency"] = split["latency"] + self.vocab * self.engine.truncation_per_vocab_s
            more = tokens * (self.vocab * self.engine.truncation_per_logit_s)
            split["weight_bandwidth"] = split["weight_bandwidth"] + more
        return split

    def amounts(self, tokens: Array) -> tuple[Array, Array]:
        """No FLOPs and no bytes: neither belongs to the model's floor."""
        return np.zeros(tokens.shape), np.zeros(tokens.shape)


@dataclass(frozen=True, slots=True)
class StepPart:
    """GPU seconds of each step outside the model's kernels: input preparation, copies (`EngineProfile.step_gpu_s`)."""

    seconds: float
    kernel: str = "host"
    launches: int = 0

    def split(self, tokens: Array) -> Split:
        """See `token_costs.Part.split`."""
        return {"latency": np.full(tokens.shape, self.seconds)}

    def amounts(self, tokens: Array) -> tuple[Array, Array]:
        """None."""
        return np.zeros(tokens.shape), np.zeros(tokens.shape)
