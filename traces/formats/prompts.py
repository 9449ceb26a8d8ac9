"""Token counts and prefix ids of prompts that a log holds as text."""

from __future__ import annotations

import hashlib
from typing import Any

from ..errors import ConfigError
from .base import Context
from .chaining import ChainedIds

CHARS_PER_TOKEN = 4
"""Estimate where there is no tokenizer: OpenAI's rule of thumb for English text ("about 4 characters")."""

BLOCK_TOKENS = 16
"""Tokens per prefix id: vLLM's block size."""


class Prompts:
    """Counts tokens with the tokenizer of the reading's options, or as characters / 4, and says which."""

    def __init__(self, context: Context) -> None:
        self._chains = ChainedIds()
        self._tokenizer = _tokenizer(context.options.tokenizer)
        self._context = context

    def tokens(self, text: str) -> int:
        """Tokens of `text`, at least 1."""
        return max(1, len(self._units(text)))

    def prompt(self, text: str) -> tuple[int, list[int]]:
        """Tokens of a whole prompt, at least 1, and its chained ids of `BLOCK_TOKENS` tokens each."""
        units = self._units(text) or [" "]
        blocks = [_digest(units[i : i + BLOCK_TOKENS]) for i in range(0, len(units), BLOCK_TOKENS)]
        return len(units), self._chains.of(blocks)

    def _units(self, text: str) -> list[Any]:
        if self._tokenizer is not None:
            return list(self._tokenizer.encode(text).ids)
        self._context.remark("token counts are estimates: characters / 4; --tokenizer FILE counts them")
        return [text[i : i + CHARS_PER_TOKEN] for i in range(0, len(text), CHARS_PER_TOKEN)]


def _digest(units: list[Any]) -> bytes:
    text = "\x1f".join(map(str, units))
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _tokenizer(path: str | None) -> Any:
    if path is None:
        return None
    try:
        import tokenizers  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ConfigError("--tokenizer: needs the package tokenizers (pip install tokenizers)") from None
    try:
        return tokenizers.Tokenizer.from_file(path)
    except Exception as problem:  # noqa: BLE001 # the library raises a bare Exception
        raise ConfigError(f"--tokenizer: {path}: cannot be read ({problem})") from None


def text_of(content: Any) -> str:
    """The text of a message's `content`: a string, or a list of parts of which those with `text` count."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return ""
