"""What a client asked of the service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One request as a client sent it (one row of a `Trace`).

    `arrival_s` is seconds since the trace began. `output_tokens` is an oracle: policies never see it; they see
    `max_output_tokens` (None: the model's limit less the prompt). `hash_ids` are prefix-chained block ids of
    `block_size` tokens each (equal id: equal whole prefix up to that block); None: nothing is shared.
    `output_hash_ids`: ids of the blocks that decoding completes, behind the prompt's whole ones.
    `delay_s` is think time after the previous turn of the same `session_id` completes.
    `observed` holds measured values {ttft_ms, e2e_ms, itl_ms, cached_tokens} where the trace has them.
    """

    request_id: str
    arrival_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] | None = None
    block_size: int | None = None
    output_hash_ids: tuple[int, ...] | None = None
    session_id: str | None = None
    delay_s: float | None = None
    turn: int | None = None
    parent_id: str | None = None
    max_output_tokens: int | None = None
    priority: int = 0
    tenant: str | None = None
    model: str | None = None
    adapter: str | None = None
    slo_class: str | None = None
    observed: dict[str, Any] | None = None
