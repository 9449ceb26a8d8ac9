"""Mooncake's own four fields (kvcache-ai/Mooncake, FAST25 release): 512-token blocks, milliseconds, no sidecar.

Its files are read as native ones; under this name they are written, and read with 512 taken as given.
"""

from __future__ import annotations

from ..reblocking import reblocked
from ..trace import Trace
from .base import Extra, Format, Sample, WriteState
from .native import json_lines, milliseconds, read

BLOCK_TOKENS = 512


def sniff(_sample: Sample) -> bool:
    """Never: the native format recognises these files."""
    return False


def write(_state: WriteState, trace: Trace, _extra: Extra | None) -> bytes:
    """timestamp, input_length, output_length, hash_ids ([] where a row has none), in this order."""
    blocks = reblocked(trace, BLOCK_TOKENS).hash_ids
    columns = (milliseconds(trace.arrival_s), trace.input_tokens.tolist(), trace.output_tokens.tolist())
    return json_lines(
        [
            {
                "timestamp": at,
                "input_length": n_in,
                "output_length": n_out,
                "hash_ids": (blocks.row(i) if blocks is not None else None) or (),
            }
            for i, (at, n_in, n_out) in enumerate(zip(*columns, strict=True))
        ]
    )


FORMAT = Format(
    name="mooncake",
    about="JSONL: timestamp (ms), input_length, output_length, hash_ids of 512 tokens; for writing",
    sniff=sniff,
    read=read,
    write=write,
    holds=frozenset({"hash_ids"}),
    hash_block_size=BLOCK_TOKENS,
    sidecar=True,
)
