"""Replicas, dollars and kilowatt-hours of a load, and who is dominated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import TYPE_CHECKING, Any

from stepline.traces.wording import counted

from .plan_types import Row
from .prices import GpuCost, Prices

if TYPE_CHECKING:
    import pandas as pd
    from stepline.traces.trace import Trace

    from ..cluster.spec import ReplicaSpec
    from ..cost.specs import GpuSpec
    from .config import RunConfig
    from .plan_capacity import Capacity


@dataclass(frozen=True, slots=True)
class Ledger:
    """A load and what GPUs cost."""

    load_per_s: float
    tokens_per_request: float
    output_tokens_per_request: float
    prices: Prices

    @classmethod
    def of(cls, trace: Trace, prices: Prices) -> Ledger:
        """The ledger of a trace's load."""
        from .plan_probe import mean_rate

        output = float(trace.output_tokens.mean())
        return cls(mean_rate(trace), float(trace.input_tokens.mean()) + output, output, prices)

    def cost(self, gpu: GpuSpec, config: RunConfig) -> GpuCost:
        """What one GPU costs; the configuration's own price wins."""
        cost = self.prices.of(gpu)
        own = config.usd_per_gpu_hour
        return cost if own is None else replace(cost, usd_per_gpu_hour=own)

    def usd_per_hour(self, gpu: GpuSpec, config: RunConfig, replicas: int, busy_frac: float) -> float | None:
        """Price of a fleet."""
        gpus = replicas * config.gpus_per_replica
        return self.prices.usd_per_hour(self.cost(gpu, config), gpus, busy_frac)

    def least_usd(self, spec: ReplicaSpec, replicas: int, bound_per_s: float, config: RunConfig) -> float:
        """Dollars an hour below which no fleet of this kind carries the load (0 where no price is known): the fewest
        replicas, whose GPUs compute at least `load / bound` of the time."""
        busy = min(1.0, self.load_per_s / (bound_per_s * replicas)) if bound_per_s < inf else 0.0
        return self.usd_per_hour(spec.gpu, config, replicas, busy) or 0.0

    def sure_usd(self, row: Row, slack: float) -> float:
        """Dollars an hour for which a simulated row's fleet surely carries the load (inf: unknown): replicas by the
        low end of its rate, and `slack` more, since the replicas of a fleet need not be equally loaded."""
        if not row.low_per_s or not row.replicas or row.usd_per_hour is None:
            return inf
        return row.usd_per_hour / row.replicas * ceil(slack * self.load_per_s / row.low_per_s)

    def _million_tokens_per_hour(self) -> float:
        return self.load_per_s * self.tokens_per_request * 3600 / 1e6

    def priced(self, base: Row, found: Capacity, gpu: GpuSpec, config: RunConfig, most: int) -> Row:
        """A row with its rate and what the load costs with it."""
        row = replace(
            base, why=found.limit, rate_per_s=found.rate_per_s, low_per_s=found.low_per_s,
            high_per_s=found.high_per_s, replications=found.replications, figures=found.figures,
            at_load=found.at_load, looks=found.looks,
        )  # fmt: skip
        if not found.rate_per_s:
            return replace(row, status="infeasible", why=f"{found.limit} at any load")
        n = max(1, ceil(self.load_per_s / found.rate_per_s))
        full_busy = found.figures["busy_frac"]
        one = self.usd_per_hour(gpu, config, 1, full_busy)
        full_tokens = found.rate_per_s * self.tokens_per_request * 3600 / 1e6
        row = replace(
            row,
            goodput_per_s=found.rate_per_s * found.figures["good_frac"],
            usd_per_million_tokens_full=None if one is None else one / full_tokens,
        )
        if n > most:
            return replace(row, why=f"needs {counted(n, 'replica')}, --max-replicas is {most}")
        busy = found.at_load["busy_frac"]
        usd = self.usd_per_hour(gpu, config, n, busy)
        gpus = n * base.gpus_per_replica
        money = self.per_million(usd, gpu, gpus, busy, self.cost(gpu, config))
        return replace(row, replicas=n, gpus=gpus, usd_per_hour=usd, **money)

    def per_million(
        self,
        usd_per_hour: float | None,
        gpu: GpuSpec,
        gpus: int,
        busy_frac: float,
        cost: GpuCost | None = None,
    ) -> dict[str, Any]:
        """Dollars and kilowatt-hours per million tokens (prompt and output) of the load; dollars per million output."""
        hourly = self._million_tokens_per_hour()
        output = hourly * self.output_tokens_per_request / self.tokens_per_request
        kw = self.prices.kw(cost or self.prices.of(gpu), gpus, busy_frac)
        return {
            "usd_per_million_tokens": None if usd_per_hour is None else usd_per_hour / hourly,
            "usd_per_million_output_tokens": None if usd_per_hour is None else usd_per_hour / output,
            "kwh_per_million_tokens": kw / hourly,
        }

    def at_other_loads(self, rows: Sequence[Row], factors: Sequence[float], most: int) -> pd.DataFrame:
        """The cheapest candidate by its sustainable rate when the load is `factor` times as high."""
        import pandas as pd

        table = []
        for factor in sorted({*factors, 1.0}):
            load = factor * self.load_per_s
            options = []
            for row in rows:
                n = ceil(load / row.rate_per_s) if row.rate_per_s else most + 1
                if n <= most and row.usd_per_hour is not None and row.replicas:
                    options.append(
                        (row.usd_per_hour / row.replicas * n, n * row.gpus_per_replica, row.label, n)
                    )
            best = min(options, default=None)
            table.append(
                {
                    "load_factor": factor,
                    "load_per_s": load,
                    "label": best[2] if best else None,
                    "replicas": best[3] if best else None,
                    "gpus": best[1] if best else None,
                    "usd_per_hour": best[0] if best else None,
                }
            )
        return pd.DataFrame(table)


def mark_pareto(rows: Sequence[Row]) -> list[Row]:
    """Mark the rows that no other beats in price, TTFT p99 and TPOT p99 under the load at once."""

    def figures(row: Row) -> tuple[float, float, float] | None:
        if row.usd_per_hour is None or "ttft_p99" not in row.at_load:
            return None
        return (row.usd_per_hour, row.at_load["ttft_p99"], row.at_load.get("tpot_p99", 0.0))

    points = [f for row in rows if (f := figures(row)) is not None]

    def front(row: Row) -> bool:
        mine = figures(row)
        return mine is not None and not any(
            p != mine and all(a <= b for a, b in zip(p, mine, strict=True)) for p in points
        )

    return [replace(row, pareto=front(row)) for row in rows]
