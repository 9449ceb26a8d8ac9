"""Brings what a prompt has in the tiers below back to the GPU before the prompt is admitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepline.traces.errors import InvariantError

from .segment import Segment
from .sequence import WAITING

if TYPE_CHECKING:
    from .contracts import Plan
    from .kv_cache import KVCache, Match
    from .offload import Offload, Run
    from .sequence import Sequence
    from .tier import Tier

Price = Callable[[int, int], float]
"""Seconds of a step with all decodes and a chunk of so many tokens after so many (see `View.step_s`)."""


@dataclass(slots=True, eq=False)
class Fetch:
    """A load on its way: what it pins on the GPU, head first, and below; what is loaded; whether all of it is there."""

    pinned: list[Segment]
    below: dict[Tier, dict[Segment, None]]
    runs: tuple[Run, ...]
    ready_s: float
    is_there: bool = False


class Fetcher:
    """The loads of one replica.

    As in vLLM V1 (`WAITING_FOR_REMOTE_KVS`), a prompt that is about to be admitted and has blocks below leaves the
    queue, takes the blocks it will need for them, and comes back to the queue's head when they are there; others are
    computed meanwhile. What has been loaded is cached content like any other from then on. Each admission loads once:
    if what came is lost again before the prompt joins, it is computed.
    """

    def __init__(self, offload: Offload, kv: KVCache, price: Price) -> None:
        self.offload, self.kv, self.price = offload, kv, price
        self.loading: dict[Sequence, Fetch] = {}

    def wipe(self) -> None:
        """The machine has failed."""
        self.loading.clear()
        self.offload.wipe()

    def check(self) -> None:
        """Raise InvariantError if a load is left, or a tier's counts are wrong."""
        if self.loading:
            raise InvariantError(f"{len(self.loading)} loads on their way after the run")
        self.offload.check()

    # -- start ------------------------------------------------------------------------------------------------------

    def begin(self, plan: Plan, reserve_blocks: int, now_s: float) -> list[Sequence]:
        """Start loading for those whom the plan would admit; returns them.

        `reserve_blocks`: blocks that must be left for those who run.
        """
        begun = []
        for seq, _ in plan.chunks:
            if seq.state == WAITING and seq.loaded is None and seq.hash_ids and not seq.swapped_tokens:
                fetch = self._fetch(seq, reserve_blocks, now_s)
                if fetch is not None:
                    self.loading[seq] = fetch
                    begun.append(seq)
        return begun

    def _fetch(self, seq: Sequence, reserve_blocks: int, now_s: float) -> Fetch | None:
        kv, offload = self.kv, self.offload
        match = kv.match(seq)
        found = offload.chain(seq, match, kv.index, kv.block_size, now_s)
        pins = sum([s.blocks for s in match.segments if not s.refs])
        runs = self._worth_it(list(_fitting(found, kv.available - pins - reserve_blocks)), match, now_s)
        if not runs:
            return None
        pinned = [*match.segments, *[run.copy for run in runs if run.tier is None]]
        kv.hold(pinned)
        below: dict[Tier, dict[Segment, None]] = {}
        for run in runs:
            if run.tier is not None:
                run.tier.pin(run.copy, now_s, below.setdefault(run.tier, {}))
        kv.take(sum([run.blocks for run in runs]))
        return Fetch(list(match.segments), below, runs, offload.send(runs, now_s))

    def _worth_it(self, runs: list[Run], match: Match, now_s: float) -> tuple[Run, ...]:
        """The part of them that saves most time against computing it, or nothing."""
        if self.offload.rules.load == "always":
            return tuple(runs)
        best, most_s = 0, 0.0
        for n in self._cuts(runs):
            tokens = (runs[n - 1].end - match.blocks) * self.kv.block_size
            history = match.blocks * self.kv.block_size
            compute_s = self.price(tokens, history) - self.price(0, 0)
            saved_s = compute_s - (self.offload.due_s(runs[:n], now_s) - now_s)
            if saved_s > most_s:
                best, most_s = n, saved_s
        return tuple(runs[:best])

    def _cuts(self, runs: list[Run]) -> list[int]:
        """All of them, or all before the first that a slower tier has."""
        cuts = {len(runs)}
        for i in range(1, len(self.offload.tiers)):
            slower = self.offload.tiers[i:]
            cuts.add(next((n for n, run in enumerate(runs) if run.tier in slower), len(runs)))
        return sorted(cuts - {0})

    # -- end --------------------------------------------------------------------------------------------------------

    def land(self, seq: Sequence, now_s: float) -> None:
        """What was loaded for a sequence is there: cached content that nobody holds."""
        fetch = self.loading.pop(seq)
        path = list(fetch.pinned)
        parent = path[-1] if path else None
        for run in fetch.runs:
            if run.tier is None:
                parent = run.copy
                path.append(parent)
                continue
            parent = self._put(run, seq, parent, path)
            run.tier.loaded_blocks += run.blocks
        self.kv.unhold(reversed(path))
        for tier, pinned in fetch.below.items():
            tier.unpin(pinned, now_s)
        self.offload.promote(fetch.runs, now_s)
        seq.loaded = fetch.runs

    def _put(self, run: Run, seq: Sequence, parent: Segment | None, path: list[Segment]) -> Segment:
        """Blocks of one segment come behind what the GPU had of it, unless somebody has computed it meanwhile."""
        kv = self.kv
        here = kv.index.get(run.key)
        if here is None:
            here = Segment(run.key, run.blocks, run.start, seq, parent)
            kv.insert(here)
            path.append(here)
        elif run.start + here.blocks == run.first:
            here.blocks += run.blocks
        else:
            kv.give_back(run.blocks)
        return here


def _fitting(runs: Iterator[Run], room: int) -> Iterator[Run]:
    """As many of the blocks as there is room for (what lies on the GPU behind a gap is pinned too)."""
    for run in runs:
        takes = run.blocks if run.tier is not None else run.copy.blocks * (not run.copy.refs)
        if takes > room:
            if run.tier is not None and room > 0:
                yield run._replace(end=run.first + room)
            return
        room -= takes
        yield run
