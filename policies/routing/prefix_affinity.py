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
        self._known: dict[int, _Known] = {}

    def choose(self, request: Sequence, replicas: list[Any]) -> int:
        """The replica with the longest prefix, or with the fewest requests."""
        loads = [r.n_outstanding for r in replicas]
        ids = request.hash_ids
        if not ids:
            return self.pick(loads)
        low, high = min(loads), max(loads)
        unbalanced = high - low > self._abs and high > self._rel * low
        chosen = self.pick(loads) if unbalanced else self._affine(ids, replicas, loads)
        self._of(replicas[chosen]).add(ids, request.hash_ends)
        return chosen

    def _affine(self, ids: tuple[int, ...], replicas: list[Any], loads: list[int]) -> int:
        hits = [self._of(r).match(ids) for r in replicas]
        longest = max(hits)
        if longest == 0 or longest < self._threshold * len(ids):
            return self.pick(loads)
        return self.pick([n if hit == longest else float("inf") for n, hit in zip(loads, hits, strict=True)])

    def _of(self, replica: Any) -> _Known:
        known = self._known.get(replica.index)
        if known is None:
            known = self._known[replica.index] = _Known(replica.total_blocks)
        return known


class _Known:
    """Ids sent to one replica, with their blocks; the least recently sent go first. Ids are prefix-chained."""

    def __init__(self, blocks: int) -> None:
        self.room = blocks
        self.ids: OrderedDict[int, int] = OrderedDict()

    def match(self, ids: tuple[int, ...]) -> int:
        """How many leading ids are known: by bisection, since an id is known only with all before it."""
        known = self.ids
        if ids[0] not in known:
            return 0
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high + 1) // 2
            if ids[middle - 1] in known:
                low = middle
            else:
                high = middle - 1
        return low

    def add(self, ids: tuple[int, ...], ends: tuple[int, ...]) -> None:
        """Note a prompt; its head counts as the most recent, so that tails go first."""
        known = self.ids
        for i in range(len(ids) - 1, -1, -1):
            key = ids[i]
            if key in known:
                known.move_to_end(key)
            else:
                blocks = ends[i] - (ends[i - 1] if i else 0)
                known[key] = blocks
                self.room -= blocks
        while self.room < 0 and known:
            _, blocks = known.popitem(last=False)
            self.room += blocks
