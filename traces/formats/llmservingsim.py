"""LLMServingSim 2.0 data sets (JSONL): input_toks, output_toks, arrival_time_ns and the token ids themselves.

Token ids tell which prompts share a beginning, so whole blocks of `BLOCK_TOKENS` get chained hash ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import TraceError
from .base import Chunk, Context, Format, Sample
from .chaining import ChainedIds
from .fields import bad
from .jsonl import read_lines
from .rows import Rows, chunk_of
from .source import Source

BLOCK_TOKENS = 16
"""Tokens per hash id made from token ids: vLLM's block size."""

_NAMES = {"timestamp": "arrival_time_ns", "input_length": "input_toks", "output_length": "output_toks"}


def sniff(sample: Sample) -> bool:
    """A JSON object with LLMServingSim's names."""
    return set(_NAMES.values()) <= sample.row.keys()


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Nanoseconds. Raises: TraceError too where the token ids are not as many as the prompt is long."""
    chains = ChainedIds()
    for rows, lines in read_lines(source, context):
        for row, line in zip(rows, lines, strict=True):
            tokens = row.pop("input_tok_ids", None)
            row.pop("output_tok_ids", None)
            if tokens is not None:
                row["hash_ids"] = _ids(tokens, row, chains, f"{context.name}:{line}")
        yield chunk_of(Rows(rows), lines, context, names=_NAMES, unit_s=1e-9)


def _ids(tokens: Any, row: dict[str, Any], chains: ChainedIds, where: str) -> list[int]:
    if not isinstance(tokens, list):
        bad(where, "input_tok_ids", tokens, "a list of token ids")
    if len(tokens) != row.get("input_toks"):
        raise TraceError(
            f"{where}: input_tok_ids: got {len(tokens)} ids, expected input_toks = {row.get('input_toks')}"
        )
    return chains.of([str(tokens[i : i + BLOCK_TOKENS]) for i in range(0, len(tokens), BLOCK_TOKENS)])


FORMAT = Format(
    name="llmservingsim",
    about="JSONL: input_toks, output_toks, arrival_time_ns, input_tok_ids (LLMServingSim 2.0)",
    sniff=sniff,
    read=read,
    hash_block_size=BLOCK_TOKENS,
)
