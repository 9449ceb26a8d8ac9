"""What the batching policies share: making room by preemption, and the running prompts' next chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.contracts import Reservation
    from stepline.sim.engine.sequence import Sequence

Chunks = list[tuple["Sequence", int]]


class BatchBase:
    """Defaults of a batching policy: paged KV, nothing padded, prompts may be split, no oracle."""

    reservation: Reservation = "paged"
    pads = False
    whole_prompts = False
    spare_blocks = 0
    oracle = False


def make_room(
    view: Any, needed: Callable[[set[Sequence]], int], spared: Sequence | None = None
) -> set[Sequence]:
    """Sequences to preempt, chosen by the view's preemption policy, until `needed(gone)` blocks are free.

    `needed`: blocks that the step takes once the sequences in `gone` are off; `spared` goes last. Stops when nobody is
    left to go.

    Unless the rule itself lets the first one finish (`lets_finish`), the prompt that has run longest goes last: prompts in
    chunks that together exceed the cache would else take turns in losing what they have computed, for ever. Who decodes
    has emitted since it was admitted, so that preempting it costs time, but never all progress.
    """
    gone: set[Sequence] = set()
    if spared is None and not getattr(view.preemption, "lets_finish", False):
        spared = next(iter(view.prefilling), None)
    free = view.free_blocks
    while (short := needed(gone) - free) > 0:
        candidates = [seq for seq in view.newest_first() if seq not in gone and seq is not spared]
        if not candidates and spared is not None:
            candidates, spared = [spared], None
        victim = view.preemption.victim(view, candidates, short) if candidates else None
        if victim is None:
            break
        gone.add(victim)
        free += view.held_blocks(victim)
    return gone


def in_preemption_order(view: Any, gone: set[Sequence]) -> tuple[Sequence, ...]:
    """Last admitted first, so that the earliest ends up at the head of the queue."""
    return tuple([seq for seq in view.newest_first() if seq in gone])


def spare_block_need(view: Any, gone: set[Sequence]) -> int:
    """Blocks a decode step needs under "a sequence is appended to only while a block is free".

    Decodes are taken in order of admission and each wants one free block whether it opens one or not, so one must be
    left over unless the last of them opens it; a lone sequence may use the last block. Source: vLLM V0
    `BlockSpaceManager.can_append_slots`, and the replica
    schedulers of the Vidur simulator.
    """
    decoding = [seq for seq in view.newest_first() if view.decodes(seq) and seq not in gone]
    if not decoding:
        return 0
    opened: int = view.decode_blocks - sum([view.decodes(s) and view.opens_block(s) for s in gone])
    return opened if len(decoding) == 1 or view.opens_block(decoding[0]) else opened + 1
