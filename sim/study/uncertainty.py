"""What the uncertainty of the kernel constants means for a run: the run again on constants the data allow as well."""

from __future__ import annotations

from collections.abc import Callable
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

FIGURES: tuple[tuple[str, str], ...] = (
    ("ttft_s", "mean"),
    ("ttft_s", "p99"),
    ("tpot_s", "mean"),
    ("tpot_s", "p99"),
    ("e2e_s", "mean"),
    ("e2e_s", "p99"),
    ("throughput", "output_tokens_per_s"),
    ("throughput", "requests_per_s"),
)
"""The figures of a summary that get an interval: group and name."""


def intervals(
    trace: Trace,
    config: RunConfig,
    *,
    draws: int = 20,
    level: float = 0.9,
    on_draw: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Intervals of the `FIGURES` of a run, from `draws` runs on drawn kernel constants (see `cost.uncertainty.draw`).

    Only the constants vary: the trace, the policies and the host times of the engine profile stay. The interval is the
    central `level` of the draws. `on_draw(done, of)` is called after each.

    Returns {draws, level, figures: {group: {name: {nominal, low, high}}}}, seconds or per second.
    Raises ConfigError for fewer than 2 draws, a level outside (0, 1), or a cost model without a calibration.
    """
    if draws < 2:
        raise ConfigError(f"--uncertainty: got {draws}, expected at least 2 draws")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level: got {level}, expected a share between 0 and 1")
    setup = resolve(config)
    base = getattr(setup.cluster.replicas[0].cost_model, "calibration", None)
    if not isinstance(base, Calibration) or not any(fit.rows for fit in base.kernels.values()):
        raise ConfigError(f"--uncertainty: cost model {config.cost_model!r} has no calibration to draw from")
    nominal = _figures(summary(simulate_resolved(trace, setup)))
    drawn = []
    for i in range(draws):
        again = resolve(config, draw(base, stream(config.seed, "uncertainty", str(i))))
        drawn.append(_figures(summary(simulate_resolved(trace, again))))
        if on_draw is not None:
            on_draw(i + 1, draws)
    low, high = np.quantile(np.array(drawn), [(1 - level) / 2, (1 + level) / 2], axis=0).tolist()
    figures: dict[str, dict[str, Any]] = {}
    for (group, name), value, a, b in zip(FIGURES, nominal, low, high, strict=True):
        figures.setdefault(group, {})[name] = {"nominal": value, "low": a, "high": b}
    return {"draws": draws, "level": level, "figures": figures}


def _figures(content: dict[str, Any]) -> list[float]:
    """The figures of a summary; NaN where it has none (nothing completed)."""
    values = [content[group][name] for group, name in FIGURES]
    return [float("nan") if value is None else float(value) for value in values]
