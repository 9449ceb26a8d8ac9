"""What the uncertainty of the kernel constants means for a run: the run again on constants the data allow as well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from stepline.traces.errors import ConfigError
from stepline.traces.random_streams import stream

from ..cost.calibration import Calibration
from ..cost.uncertainty import draw
from ..report.summary import summary
from .run import simulate_resolved
from .setup import resolve

if TYPE_CHECKING:
    from stepline.traces.trace import Trace

    from .config import RunConfig

METRICS: tuple[tuple[str, str, str], ...] = (
    ("TTFT mean", "ttft_s", "mean"),
    ("TTFT p99", "ttft_s", "p99"),
    ("TPOT mean", "tpot_s", "mean"),
    ("TPOT p99", "tpot_s", "p99"),
    ("E2E mean", "e2e_s", "mean"),
    ("E2E p99", "e2e_s", "p99"),
    ("output tokens/s", "throughput", "output_tokens_per_s"),
    ("requests/s", "throughput", "requests_per_s"),
)
"""Label, and where the figure stands in a summary (seconds, or per second)."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure of a run with its central interval over draws of the constants (seconds, or per second)."""

    label: str
    nominal: float
    low: float
    high: float


def intervals(
    trace: Trace,
    config: RunConfig,
    *,
    draws: int = 20,
    level: float = 0.9,
    on_draw: Callable[[int, int], None] | None = None,
) -> list[Interval]:
    """Intervals of the `METRICS` of a run, from `draws` runs on drawn kernel constants (see `cost.uncertainty.draw`).

    Only the constants vary: the trace, the policies and the host times of the engine profile stay. The interval is the
    central `level` of the draws. `on_draw(done, of)` is called after each.

    Raises ConfigError for fewer than 2 draws, a level outside (0, 1), or a cost model without a calibration.
    """
    if draws < 2:
        raise ConfigError(f"--uncertainty: got {draws} draws, expected at least 2")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level: got {level}, expected a share between 0 and 1")
    setup = resolve(config)
    base = getattr(setup.cluster.replicas[0].cost_model, "calibration", None)
    if not isinstance(base, Calibration):
        raise ConfigError(f"--uncertainty: cost model {config.cost_model!r} has no calibration to draw from")
    nominal = _figures(summary(simulate_resolved(trace, setup)))
    drawn = []
    for i in range(draws):
        again = resolve(config, draw(base, stream(config.seed, "uncertainty", str(i))))
        drawn.append(_figures(summary(simulate_resolved(trace, again))))
        if on_draw is not None:
            on_draw(i + 1, draws)
    low, high = np.quantile(np.array(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0)
    return [
        Interval(label, nominal[i], float(low[i]), float(high[i])) for i, (label, _, _) in enumerate(METRICS)
    ]


def _figures(content: dict[str, Any]) -> list[float]:
    return [float(content[group][name]) for _, group, name in METRICS]
