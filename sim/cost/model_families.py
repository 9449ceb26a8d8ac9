"""Model families by `model_type`: what their code fixes beyond the numbers of a `config.json`. One entry a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ...traces.errors import ConfigError
from .specs import MoeSpec

_MISSING = object()


class Fields:
    """Checked access to a config's fields; every error names file, field, got and expected."""

    def __init__(self, where: str, config: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
        self.where = where
        self._config = {**defaults, **{k: v for k, v in config.items() if v is not None}}

    def has(self, key: str) -> bool:
        """Whether the field is set to something that takes effect (not null, false, 0 or empty)."""
        return bool(self._config.get(key))

    def get(self, key: str) -> Any:
        """The field as it stands, None where absent."""
        return self._config.get(key)

    def integer(self, *keys: str, default: Any = _MISSING) -> int:
        """The first of `keys` that is set, an integer >= 1; `default` where none is (None: required)."""
        for key in keys:
            if key in self._config:
                value = self._config[key]
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise self.error(key, value, "an integer >= 1")
                return value
        if default is _MISSING or default is None:
            raise ConfigError(f"{self.where}: {keys[0]}: missing, expected an integer >= 1")
        return int(default)

    def flag(self, key: str, *, default: bool) -> bool:
        """A true/false field."""
        value = self._config.get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, value, "true or false")
        return value

    def error(self, key: str, got: object, expected: str) -> ConfigError:
        """The error to raise for a wrong field."""
        return ConfigError(f"{self.where}: {key}: got {got!r}, expected {expected}")


Windows = list[int | None]


def no_windows(_: Fields, n_layers: int) -> Windows:
    """Full attention in every layer."""
    return [None] * n_layers


def window_everywhere(fields: Fields, n_layers: int) -> Windows:
    """One `sliding_window` for all layers (Mistral-7B v0.1, Phi-3); null means none."""
    return [fields.integer("sliding_window") if fields.has("sliding_window") else None] * n_layers


def window_above(fields: Fields, n_layers: int) -> Windows:
    """Qwen: only with `use_sliding_window`, in the layers from `max_window_layers` on."""
    if not fields.flag("use_sliding_window", default=False):
        return no_windows(fields, n_layers)
    window = fields.integer("sliding_window")
    first = fields.integer("max_window_layers", default=n_layers)
    return [None if i < first else window for i in range(n_layers)]


def window_pattern(full_every: int) -> Callable[[Fields, int], Windows]:
    """Local layers with every `full_every`-th one global (Gemma-2: 2, Gemma-3: 6, gpt-oss: 2, Llama-4: 4).

    `layer_types`, where the config has them, win; `sliding_window_pattern` overrides the family's period.
    """

    def windows(fields: Fields, n_layers: int) -> Windows:
        key = "attention_chunk_size" if fields.has("attention_chunk_size") else "sliding_window"
        window = fields.integer(key)
        kinds = fields.get("layer_types")
        if kinds:
            if len(kinds) != n_layers:
                raise fields.error(
                    "layer_types", f"{len(kinds)} entries", f"one for each of {n_layers} layers"
                )
            return [None if kind == "full_attention" else window for kind in kinds]
        period = fields.integer("sliding_window_pattern", "no_rope_layer_interval", default=full_every)
        return [None if (i + 1) % period == 0 else window for i in range(n_layers)]

    return windows


def mixtral_moe(fields: Fields) -> MoeSpec:
    """Mixtral: every layer, experts as wide as `intermediate_size`, none shared."""
    return MoeSpec(
        n_experts=fields.integer("num_local_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        expert_size=fields.integer("intermediate_size"),
    )


def gpt_oss_moe(fields: Fields) -> MoeSpec:
    """gpt-oss: Mixtral's layout; router and experts carry biases."""
    return MoeSpec(
        n_experts=fields.integer("num_local_experts"),
        top_k=fields.integer("num_experts_per_tok", "experts_per_token"),
        expert_size=fields.integer("intermediate_size"),
        bias=True,
    )


def qwen_moe(fields: Fields) -> MoeSpec:
    """Qwen MoE: `shared_expert_intermediate_size` is the total width of the shared experts (one gated block)."""
    if fields.get("mlp_only_layers"):
        raise fields.error("mlp_only_layers", fields.get("mlp_only_layers"), "an empty list")
    shared_size = fields.integer("shared_expert_intermediate_size", default=0)
    return MoeSpec(
        n_experts=fields.integer("num_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        expert_size=fields.integer("moe_intermediate_size"),
        n_shared=1 if shared_size else 0,
        shared_size=shared_size,
        layer_step=fields.integer("decoder_sparse_step", default=1),
        shared_gate=bool(shared_size),
    )


def deepseek_moe(fields: Fields) -> MoeSpec:
    """DeepSeek: dense first layers, then routed and `n_shared_experts` shared experts of one width."""
    if fields.get("moe_layer_freq") not in (None, 1):
        raise fields.error("moe_layer_freq", fields.get("moe_layer_freq"), "1")
    width = fields.integer("moe_intermediate_size")
    n_shared = fields.integer("n_shared_experts", default=0)
    return MoeSpec(
        n_experts=fields.integer("n_routed_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        expert_size=width,
        n_shared=n_shared,
        shared_size=width if n_shared else 0,
        n_dense_layers=fields.integer("first_k_dense_replace", default=0),
    )


def llama4_moe(fields: Fields) -> MoeSpec:
    """Llama-4: one shared expert of the routed width; every `interleave_moe_layer_step`-th layer is MoE."""
    width = fields.integer("intermediate_size")
    return MoeSpec(
        n_experts=fields.integer("num_local_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        expert_size=width,
        n_shared=1,
        shared_size=width,
        layer_step=fields.integer("interleave_moe_layer_step", default=1),
    )


def classic_moe(fields: Fields) -> MoeSpec:
    """GLaM and Switch: experts of two matrices, in every `moe_layer_step`-th layer."""
    return MoeSpec(
        n_experts=fields.integer("num_experts"),
        top_k=fields.integer("num_experts_per_tok"),
        expert_size=fields.integer("intermediate_size"),
        layer_step=fields.integer("moe_layer_step", default=1),
        gated=False,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the code of a model family fixes. `defaults`: HF's values of keys its configs leave out."""

    gated: bool = True
    tied: bool = False
    qkv_bias: bool = False
    linear_bias: bool = False
    qk_norm: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norms_per_layer: int = 2
    mha: bool = False
    mla: bool = False
    learned_positions: bool = False
    local_rope: bool = False
    windows: Callable[[Fields, int], Windows] = no_windows
    moe: Callable[[Fields], MoeSpec] | None = None
    reads: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reads_experts(self) -> bool:
        """Whether the family has routed experts."""
        return self.moe is not None


_LLAMA4 = Family(windows=window_pattern(4), moe=llama4_moe, reads=("attention_chunk_size",))
_DEEPSEEK = Family(mla=True, moe=deepseek_moe, reads=("kv_lora_rank",))
_GEMMA3_DEFAULTS = {  # Gemma3TextConfig: the published 4b/12b/27b configs leave these out
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
}
_GEMMA3 = Family(
    defaults=_GEMMA3_DEFAULTS,
    tied=True,
    qk_norm=True,
    norms_per_layer=4,
    local_rope=True,
    windows=window_pattern(6),
)

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "granite": Family(),
    "mistral": Family(windows=window_everywhere),
    "mixtral": Family(windows=window_everywhere, moe=mixtral_moe),
    "qwen2": Family(qkv_bias=True, windows=window_above),
    "qwen2_moe": Family(qkv_bias=True, windows=window_above, moe=qwen_moe),
    "qwen3": Family(qk_norm=True, windows=window_above),
    "qwen3_moe": Family(qk_norm=True, windows=window_above, moe=qwen_moe),
    "phi": Family(gated=False, linear_bias=True, qkv_bias=True, norm="layer", norms_per_layer=1),
    "phi3": Family(windows=window_everywhere),
    "gemma": Family(tied=True),
    "gemma2": Family(tied=True, norms_per_layer=4, windows=window_pattern(2)),
    "gemma3_text": _GEMMA3,
    "gpt2": Family(
        gated=False,
        tied=True,
        qkv_bias=True,
        linear_bias=True,
        norm="layer",
        mha=True,
        learned_positions=True,
    ),
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "llama4_text": _LLAMA4,
    "glam": Family(tied=True, moe=classic_moe),
    "switch": Family(gated=False, moe=classic_moe),
    "gpt_oss": Family(qkv_bias=True, linear_bias=True, windows=window_pattern(2), moe=gpt_oss_moe),
}
"""Known values of `model_type`, from the modelling files of Hugging Face transformers of the same name."""
