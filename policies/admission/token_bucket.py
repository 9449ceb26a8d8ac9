"""A token bucket: a sustained rate with bursts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.engine.sequence import Sequence


class TokenBucketPolicy:
    """Admits while the bucket holds a request's cost; it fills at `rate` per second up to `burst`.

    `unit`: `requests` (each costs 1) or `tokens` (each costs its prompt). One bucket a replica, or with `per_tenant` one
    a tenant. As rate limits of hosted APIs are stated (requests or tokens a minute).
    """

    def __init__(
        self, *, rate: float, burst: float | None = None, unit: str = "requests", per_tenant: bool = False
    ) -> None:
        if not rate > 0:
            raise ValueError(f"rate: got {rate}, expected a number > 0")
        if unit not in ("requests", "tokens"):
            raise ValueError(f"unit: got {unit!r}, expected 'requests' or 'tokens'")
        self.rate, self.unit, self.per_tenant = rate, unit, per_tenant
        self.burst = rate if burst is None else burst
        if not self.burst > 0:
            raise ValueError(f"burst: got {burst}, expected a number > 0")
        self._level: dict[str | None, tuple[float, float]] = {}

    def admit(self, view: Any, seq: Sequence, now_s: float) -> bool:
        """Take the cost out of the bucket if it is there."""
        name = seq.tenant if self.per_tenant else None
        level, at_s = self._level.get(name, (self.burst, now_s))
        level = min(self.burst, level + self.rate * (now_s - at_s))
        cost = 1.0 if self.unit == "requests" else float(seq.prompt_tokens)
        admitted = cost <= level
        self._level[name] = (level - cost if admitted else level, now_s)
        return admitted
