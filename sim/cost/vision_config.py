"""The image side of a multimodal `config.json`: weights and images, as far as they take memory; time is not priced."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...traces.errors import ConfigError, nearest
from .model_families import Fields
from .specs import VisionSpec


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A multimodal `model_type`: its text family, and how its images become tokens.

    text        `model_type` of the text part where the text part does not say
    gated       whether the tower's FFN has three matrices
    merge       patches merged into a token, per side
    tiles       tiles of the largest image
    tokens_key  top-level key that states an image's tokens, where there is one
    """

    text: str
    gated: bool = False
    merge: int = 1
    tiles: int = 1
    tokens_key: str = ""


WRAPPERS = {
    "gemma3": Wrapper(text="gemma3_text", tokens_key="mm_tokens_per_image"),
    "mistral3": Wrapper(text="mistral", gated=True, merge=2),
    "llama4": Wrapper(
        text="llama4_text", merge=2, tiles=17
    ),  # 16 tiles and the whole image, pixel shuffle by 2
}
"""Multimodal model types of Hugging Face transformers whose text part is a known family."""


def unwrap(where: str, config: Mapping[str, Any]) -> tuple[Mapping[str, Any], int, VisionSpec | None]:
    """(text config, weights of the tower, its images); a text-only config comes back as it is.

    The tower is a plain ViT: L (4 h² + 2 or 3 h f) + 3 p² h weights; projector and biases (up to 8 % of it) are left out.

    Raises:
        ConfigError: a wrapper that is not known, or a tower whose shape is not stated.
    """
    key = next((k for k in ("text_config", "language_config", "llm_config") if k in config), None)
    if key is None:
        return config, 0, None
    kind = str(config.get("model_type"))
    wrapper = WRAPPERS.get(kind)
    if wrapper is None or key != "text_config" or "audio_config" in config:
        raise ConfigError(
            f"{where}: {key}: a multimodal config of model_type {kind!r} is not modelled{nearest(kind, WRAPPERS)}; "
            "give its text part as a config.json of its own"
        )
    top = {k: config[k] for k in ("tie_word_embeddings", "torch_dtype", "quantization_config") if k in config}
    text = {"model_type": wrapper.text} | top | dict(config["text_config"])
    if not isinstance(config.get("vision_config"), Mapping):
        return text, 0, None
    tower = Fields(f"{where}: vision_config", config["vision_config"], {})
    return text, _tower_params(tower, wrapper), _images(tower, wrapper, Fields(where, config, {}))


def _tower_params(tower: Fields, wrapper: Wrapper) -> int:
    h, f = tower.integer("hidden_size"), tower.integer("intermediate_size")
    patch = 3 * tower.integer("patch_size") ** 2 * h
    return tower.integer("num_hidden_layers") * (4 * h * h + (3 if wrapper.gated else 2) * h * f) + patch


def _images(tower: Fields, wrapper: Wrapper, top: Fields) -> VisionSpec:
    side = tower.integer("image_size")
    tokens = (side // tower.integer("patch_size") // wrapper.merge) ** 2
    if wrapper.tokens_key:
        tokens = top.integer(wrapper.tokens_key, default=tokens)
    return VisionSpec(image_tokens=wrapper.tiles * tokens, image_values=wrapper.tiles * 3 * side * side)
