"""What a planner's workers do: pure functions of a candidate and a load."""

from __future__ import annotations

import pickle
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .plan_capacity import Capacity, Effort, capacity, single
from .plan_probe import Probe, probe
from .setup import Setup, resolve

if TYPE_CHECKING:
    from stepline.traces.trace import Trace

    from ..report.slo import Slo
    from .config import RunConfig


@dataclass(frozen=True, slots=True)
class CapacityTask:
    """Find the sustainable rate of one replica. `draw`: of the calibration (None: the calibration itself)."""

    config: RunConfig
    load: str
    bound_per_s: float
    load_per_s: float
    effort: Effort
    draw: int | None = None


@dataclass(frozen=True, slots=True)
class FleetTask:
    """Simulate a fleet under the whole load."""

    config: RunConfig
    load: str


def save_load(trace: Trace, directory: str) -> str:
    """Keep a trace where workers of this machine find it."""
    path = Path(directory) / "load.pickle"
    path.write_bytes(pickle.dumps(trace, protocol=pickle.HIGHEST_PROTOCOL))
    return str(path)


@lru_cache(maxsize=1)
def _load(path: str) -> Trace:
    trace: Trace = pickle.loads(Path(path).read_bytes())
    return trace


def run_task(task: CapacityTask | FleetTask) -> Capacity | Probe:
    """Do one."""
    if isinstance(task, FleetTask):
        return probe(resolve(task.config), _load(task.load), slo_of(task.config))
    setup = single(resolve(task.config))
    if task.draw is not None:
        setup = drawn(setup, task.draw)
    return capacity(
        setup, _load(task.load), slo_of(task.config), task.bound_per_s, task.load_per_s, task.effort
    )


def slo_of(config: RunConfig) -> Slo | None:
    """The objectives of a configuration."""
    from ..report.slo import parse_slo

    return None if config.slo is None else parse_slo(config.slo)


def drawn(setup: Setup, number: int) -> Setup:
    """The setup on a draw of its calibration; of a cost model without one, the setup itself."""
    from stepline.traces.random_streams import stream

    from ..cost.uncertainty import draw
    from .pricing import cost_model_of

    spec = setup.cluster.replicas[0]
    calibration: Any = getattr(spec.cost_model, "calibration", None)
    if calibration is None:
        return setup
    other = draw(calibration, stream(setup.config.seed, "calibration", number))
    model, _ = cost_model_of(setup.config, spec.model, spec.gpu, spec.engine, other)
    replicas = tuple(replace(r, cost_model=model) for r in setup.cluster.replicas)
    return replace(setup, cluster=replace(setup.cluster, replicas=replicas))
