"""The largest of equal shares of a step: what the busiest rank, or the largest micro-batch, has of it.

Of n decodes it has ⌈n / parts⌉ at the mean context, of p pieces of prompts ⌈p / parts⌉ of mean length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .forms import Array
from .work import StepWork


def largest_share(work: StepWork, parts: int, pieces: int) -> StepWork:
    """The largest of `parts` shares of a step whose prompts come in so many `pieces`."""
    tokens, seqs, pairs, kv_tokens, n, contexts, rows, generated = work
    decodes = -(-n // parts)
    of_chunks, of_decodes = -(-pieces // parts) / max(pieces, 1), decodes / max(n, 1)
    return StepWork(
        math.ceil(tokens * of_chunks),
        -(-seqs // parts),
        pairs * of_chunks,
        kv_tokens * of_chunks,
        decodes,
        tuple([context * of_decodes for context in contexts]),
        decodes - (n - rows) // parts,
        generated * of_decodes,
    )


def largest_shares(columns: Mapping[str, Any], parts: int, pieces: Array) -> dict[str, Array]:
    """`largest_share` of many steps: the columns of `work.CostModel.explain_many`, shape (steps,), as `pieces`."""
    n = columns["n_decode"]
    decodes = np.ceil(n / parts)
    of_chunks = np.ceil(pieces / parts) / np.maximum(pieces, 1.0)
    of_decodes = decodes / np.maximum(n, 1.0)
    share = {
        name: value * of_decodes
        for name, value in columns.items()
        if name.startswith(("context_tokens", "generated_tokens"))
    }
    share |= {name: columns[name] * of_chunks for name in ("attention_pairs", "prefill_kv_tokens")}
    share["prefill_tokens"] = np.ceil(columns["prefill_tokens"] * of_chunks)
    share["prefill_seqs"] = np.ceil(columns["prefill_seqs"] / parts)
    share["n_decode"] = decodes
    share["logits_rows"] = decodes + np.ceil(np.maximum(columns["logits_rows"] - n, 0.0) / parts)
    return share
