"""To the replica that has seen most of the prompt before, unless loads have drifted apart."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .base import LeastOf

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class PrefixAffinityPolicy(LeastOf):
    """Longest known prefix first, with a guard on the balance.

    The router remembers, per replica, the ids of the prefixes it has sent there: as many blocks as the replica has,
    least recently sent out first. It asks no engine, so what it believes may differ from what is cached.

    threshold      a replica is chosen for its prefix only if that is at least this share of the prompt's ids;
                   else the replica with the fewest requests is
    balance_abs, balance_rel  no affinity while the busiest replica has more than `balance_abs` requests more, and
                   more than `balance_rel` times as many, as the idlest
    Source: the cache-aware policy of SGLang's router (`cache_threshold` 0.3, `balance_abs_threshold` 64,
    `balance_rel_threshold` 1.5), which keeps an approximate radix tree per worker in the same way.
    """

    def __init__(self, *, threshold: float = 0.3, balance_abs: float = 64, balance_rel: float = 1.5) -> None:
        super().__init__()
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold: got {threshold!r}, expected a fraction in 0..1")
        for name, value in (("balance_abs", balance_abs), ("balance_rel", balance_rel)):
            if not value >= 0:
                raise ConfigError(f"{name}: got {value!r}, expected a number >= 0")
        self._threshold, self._abs, self._rel = threshold, balance_abs, balance_rel
        self._index = _Index()
        self._shown: list[Any] = []
        self._open = 0

    def choose(self, request: Sequence, replicas: list[Any]) -> int:
        """The replica with the longest prefix, or with the fewest requests."""
        loads = [r.n_outstanding for r in replicas]
        ids = request.hash_ids
        if not ids:
            return self.pick(loads)
        low, high = min(loads), max(loads)
        unbalanced = high - low > self._abs and high > self._rel * low
        chosen = self.pick(loads) if unbalanced else self._affine(ids, replicas, loads)
        self._index.add(replicas[chosen], ids, request.hash_ends)
        return chosen

    def _affine(self, ids: tuple[int, ...], replicas: list[Any], loads: list[int]) -> int:
        longest, holders = self._index.match(ids, self._bits(replicas))
        if longest == 0 or longest < self._threshold * len(ids):
            return self.pick(loads)
        return self.pick(
            [n if holders >> r.index & 1 else float("inf") for n, r in zip(loads, replicas, strict=True)]
        )

    def _bits(self, replicas: list[Any]) -> int:
        """The replicas as bits at their numbers."""
        if replicas is not self._shown:
            self._shown, self._open = replicas, sum([1 << r.index for r in replicas])
        return self._open


class _Index:
    """Ids sent to each replica, with their blocks; the least recently sent go first. Ids are prefix-chained.

    `holders`: of an id, the replicas that know it as bits, so that a look-up costs the same however many there are.
    """

    def __init__(self) -> None:
        self.holders: dict[int, int] = {}
        self.known: dict[int, OrderedDict[int, int]] = {}
        self.room: dict[int, int] = {}

    def match(self, ids: tuple[int, ...], among: int) -> tuple[int, int]:
        """How many leading ids some of these replicas know, and which: by bisection, since a replica knows an id only with
        all before it."""
        holders = self.holders
        found = holders.get(ids[0], 0) & among
        if not found:
            return 0, 0
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            deeper = holders.get(ids[middle - 1], 0) & among
            if deeper:
                low, found = middle, deeper
            else:
                high = middle - 1
        return low, found

    def add(self, replica: Any, ids: tuple[int, ...], ends: tuple[int, ...]) -> None:
        """Note a prompt; its head counts as the most recent, so that tails go first."""
        index, holders = replica.index, self.holders
        known = self.known.get(index)
        if known is None:
            known, self.room[index] = self.known.setdefault(index, OrderedDict()), replica.total_blocks
        room, bit = self.room[index], 1 << index
        for i in range(len(ids) - 1, -1, -1):
            key = ids[i]
            if key in known:
                known.move_to_end(key)
            else:
                blocks = ends[i] - (ends[i - 1] if i else 0)
                known[key] = blocks
                holders[key] = holders.get(key, 0) | bit
                room -= blocks
        while room < 0 and known:
            key, blocks = known.popitem(last=False)
            room += blocks
            left = holders[key] & ~bit
            if left:
                holders[key] = left
            else:
                del holders[key]
        self.room[index] = room
