"""vLLM's `timed_trace` data set (`vllm bench serve --dataset-name timed_trace`): native keys in seconds, 16-token blocks.

A row looks exactly like a native one, so the format is never guessed: only `--trace-format timed_trace` names it.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..reblocking import reblocked
from ..trace import Trace
from .base import Chunk, Context, Extra, Format, Sample, WriteState
from .jsonl import read_objects
from .native import json_lines
from .source import Source

BLOCK_TOKENS = 16


def sniff(_sample: Sample) -> bool:
    """Never: see the module."""
    return False


def read(source: Source, context: Context) -> Iterator[Chunk]:
    """Native rows with times in seconds."""
    return read_objects(source, context, unit_s=1.0)


def write(_state: WriteState, trace: Trace, _extra: Extra | None) -> bytes:
    """timestamp (s), input_length, output_length, and hash_ids where a row has them."""
    blocks = reblocked(trace, BLOCK_TOKENS).hash_ids
    columns = (trace.arrival_s.tolist(), trace.input_tokens.tolist(), trace.output_tokens.tolist())
    rows = []
    for i, (at, n_in, n_out) in enumerate(zip(*columns, strict=True)):
        row = {"timestamp": at, "input_length": n_in, "output_length": n_out}
        ids = blocks.row(i) if blocks is not None else None
        rows.append(row if ids is None else row | {"hash_ids": ids})
    return json_lines(rows)


FORMAT = Format(
    name="vllm-timed",
    about="JSONL: native keys, but seconds and hash ids of 16 tokens (vLLM timed_trace); never guessed",
    sniff=sniff,
    read=read,
    write=write,
    holds=frozenset({"hash_ids"}),
    aliases=("timed_trace", "vllm_timed"),
    hash_block_size=BLOCK_TOKENS,
)
