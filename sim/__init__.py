"""Simulate LLM serving: specs, cost model, engine, cluster, studies, reports, the `simulate` command.

>>> from stepline.sim import simulate, compare, plan, read_trace  # doctest: +SKIP
>>> result = simulate(read_trace("chat.jsonl"), policy="chunked")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import compiled

if TYPE_CHECKING:
    from stepline.sim.report.paired import Comparison as Comparison
    from stepline.sim.report.summary import summary as summary
    from stepline.sim.study.compare import compare as compare
    from stepline.sim.study.config import RunConfig as RunConfig
    from stepline.sim.study.plan import plan as plan
    from stepline.sim.study.run import simulate as simulate
    from stepline.traces.reading import read_trace as read_trace

compiled.choose()

_FACADE = {
    "simulate": "stepline.sim.study.run",
    "compare": "stepline.sim.study.compare",
    "plan": "stepline.sim.study.plan",
    "RunConfig": "stepline.sim.study.config",
    "Comparison": "stepline.sim.report.paired",
    "summary": "stepline.sim.report.summary",
    "read_trace": "stepline.traces.reading",
}
"""Public name: module that holds it, imported when first used (PEP 562), so that `import stepline.sim` is free."""

__all__ = ["Comparison", "RunConfig", "compare", "plan", "read_trace", "simulate", "summary"]


def __getattr__(name: str) -> Any:
    if name not in _FACADE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_FACADE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
