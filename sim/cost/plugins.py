"""Find a cost model by name or as `module:Class`, build it, and complete one that has only `step_s`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from math import inf
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from stepline.traces.errors import ConfigError, SteplineError, nearest

from .calibration import Calibration, find_calibration, load_calibration
from .data_parallel import DataParallelCostModel
from .datasheet import DatasheetCostModel, datasheet_calibration
from .registry import registered
from .roofline import RooflineCostModel, context_column
from .specs import GpuSpec, ModelSpec
from .user_code import described, is_ours
from .work import CostModel, Progression, StepCost, StepWork

ENTRY_POINT_GROUP = "stepline.cost_models"


def load_cost_model(
    text: str,
    model: ModelSpec | None = None,
    gpu: GpuSpec | None = None,
    *,
    demanded: Mapping[str, Any] | None = None,
    **options: Any,
) -> CostModel:
    """Build a cost model: `roofline`, `datasheet`, an entry point of `stepline.cost_models`, or
    `module:Class`.

    Args:
        text: name or `module:Class`, optionally with `:key=value,...`, e.g. `roofline:residual=false`.
        model, gpu: what is priced; a plug-in may ignore them.
        demanded: arguments by name that the model must take (what a user asked for beyond the usual).
        options: further arguments by name (tp, engine, kv_dtype, ...). What a run gives every model is left
            out where a plug-in does not take it. `roofline` also takes `calibration`: a `Calibration`, a path
            to a JSON, a library name (`vllm-0.24.0`), or None for the GPU's latest.

    Raises:
        ConfigError: unknown name, module, class or parameter, one that the class does not take, or one without `step_s`.
        CalibrationError: no usable calibration.
    """
    name, parameters = _parse(text)
    factory = _factory(name)
    context = {"model": model, "gpu": gpu, **options}
    built = factory(**_accepted(factory, context, {**(demanded or {}), **parameters}, name))
    if not callable(getattr(built, "step_s", None)):
        raise ConfigError(f"cost model {name!r}: got no method step_s(work), which every cost model needs")
    return completed(built, model)


def _parse(text: str) -> tuple[str, dict[str, Any]]:
    """Cut `name[:key=value,...]` or `module:Class[:key=value,...]`; numbers, true, false and none are read as such."""
    parts = text.strip().split(":")
    listing = parts.pop() if len(parts) > 1 and "=" in parts[-1] else ""
    parameters: dict[str, Any] = {}
    for piece in filter(None, listing.split(",")):
        key, sign, value = piece.partition("=")
        if not sign or not key.strip().isidentifier():
            raise ConfigError(f"cost model {text!r}: got {piece!r}, expected key=value")
        parameters[key.strip()] = _literal(value.strip())
    return ":".join(parts), parameters


def _literal(value: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def completed(model: Any, spec: ModelSpec | None = None) -> CostModel:
    """The model itself if it has `leap` and both breakdowns, else wrapped in `StepwiseCostModel`."""
    if all(callable(getattr(model, name, None)) for name in ("leap", "explain", "explain_many")):
        return model  # type: ignore[no-any-return]  # checked above
    return StepwiseCostModel(model, len(spec.windows) if spec is not None else 1)


class StepwiseCostModel:
    """Completes a plug-in: without `leap` it is asked once a step, without `explain` all is booked as one class."""

    def __init__(self, inner: Any, n_windows: int = 1) -> None:
        self.inner = inner
        self.n_windows = n_windows
        self.step_s: Callable[[StepWork], float] = inner.step_s
        if callable(getattr(inner, "leap", None)):
            self.leap = inner.leap  # type: ignore[method-assign]  # the plug-in's own is better
        if callable(getattr(inner, "explain", None)):
            self.explain = inner.explain  # type: ignore[method-assign]  # same

    @property
    def warnings(self) -> tuple[str, ...]:
        """The plug-in's own warnings, if it has any."""
        return tuple(getattr(self.inner, "warnings", ()))

    def leap(self, work: StepWork, growth: tuple[float, ...], n_steps: int) -> Progression:
        """One step: nothing is known about the next one."""
        del growth, n_steps
        return Progression(self.inner.step_s(work), 0.0, 1)

    def explain(self, work: StepWork) -> StepCost:
        """All seconds under gemm/compute, with no FLOPs and bytes: the plug-in does not say."""
        return StepCost({"gemm": {"compute": self.inner.step_s(work)}}, 0.0, 0.0)

    def explain_many(self, columns: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], Any, Any]:
        """`explain` row by row. A leap's mean context may be fractional; the plug-in is asked at that value."""
        names = [name for name in StepWork._fields if name != "context_tokens"]
        rows = len(columns["n_decode"])
        costs = [self.explain(self._work(columns, names, i)) for i in range(rows)]
        seconds: dict[str, dict[str, Any]] = {}
        for i, cost in enumerate(costs):
            for kernel, split in cost.seconds.items():
                for bound, s in split.items():
                    seconds.setdefault(kernel, {}).setdefault(bound, np.zeros(rows))[i] = s
        return seconds, np.array([c.flops for c in costs]), np.array([c.hbm_bytes for c in costs])

    def _work(self, columns: Mapping[str, Any], names: list[str], row: int) -> StepWork:
        plain: dict[str, Any] = {name: _number(columns[name][row]) for name in names}
        contexts = tuple(_number(columns[context_column(w)][row]) for w in range(self.n_windows))
        return StepWork(**plain, context_tokens=contexts)


def _number(value: Any) -> int | float:
    number = float(value)
    return int(number) if number.is_integer() else number


def _datasheet(model: ModelSpec, gpu: GpuSpec, **options: Any) -> RooflineCostModel:
    if options.get("dp", 1) > 1:
        return DataParallelCostModel(model, gpu, datasheet_calibration(gpu.name), **options)
    options.pop("dp", None)
    return DatasheetCostModel(model, gpu, **options)


def _roofline(model: ModelSpec, gpu: GpuSpec, calibration: Any = None, **options: Any) -> RooflineCostModel:
    if not isinstance(calibration, Calibration):
        text = str(calibration) if calibration is not None else None
        if text is not None and (text.endswith(".json") or "/" in text):
            calibration = load_calibration(text)
        else:
            calibration = find_calibration(gpu.name, model.weight_dtype, text)
    if options.get("dp", 1) > 1:
        return DataParallelCostModel(model, gpu, calibration, **options)
    options.pop("dp", None)
    return RooflineCostModel(model, gpu, calibration, **options)


_BUILT_IN: dict[str, Callable[..., Any]] = {"roofline": _roofline, "datasheet": _datasheet}


def known_cost_models() -> tuple[str, ...]:
    """Names that `load_cost_model` knows, built-in and registered."""
    return tuple(sorted({*_BUILT_IN, *registered(ENTRY_POINT_GROUP)}))


def _factory(name: str) -> Callable[..., Any]:
    if name in _BUILT_IN:
        return _BUILT_IN[name]
    plugins = registered(ENTRY_POINT_GROUP)
    if name in plugins:
        return plugins[name].load()  # type: ignore[no-any-return]  # whatever the plug-in registered
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ConfigError(f"cost model: got {name!r}{nearest(name, known_cost_models())} or module:Class")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ConfigError(f"cost model {name!r}: cannot import {module}: {error}") from None
    except AttributeError:
        raise ConfigError(f"cost model {name!r}: module {module} has no {attribute!r}") from None
    finally:
        sys.path.pop(0)
    if not callable(found):
        raise ConfigError(f"cost model {name!r}: got {type(found).__name__}, expected a class")
    return _checked(found) if inspect.isclass(found) and not is_ours(found) else found


def _checked(cls: type[Any]) -> type[Any]:
    """A subclass of a user's class whose `step_s` answers in seconds; what it raises is told by the user's own line."""
    if not callable(getattr(cls, "step_s", None)):
        return cls
    home = inspect.getfile(cls)

    def step_s(self: Any, work: StepWork) -> Any:
        try:
            seconds = cls.step_s(self, work)
        except SteplineError:
            raise
        except Exception as error:
            raise ConfigError(f"cost model {cls.__name__}: {described(error, home)}") from error
        if isinstance(seconds, Real) and 0.0 < float(seconds) < inf:
            return seconds
        raise ConfigError(
            f"cost model {cls.__name__}: step_s: got {seconds!r}, expected seconds > 0 for {work}"
        )

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, (cls,), {"step_s": step_s, **names})


def _accepted(
    factory: Callable[..., Any], context: Mapping[str, Any], parameters: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Constructor arguments: what the run offers and the factory takes, and all that the user wrote."""
    taken = set(inspect.signature(factory).parameters)
    if factory in _BUILT_IN.values():
        taken = taken - {"options"} | set(inspect.signature(RooflineCostModel).parameters) - {"calibration"}
        taken |= {"dp", "calibration"} if factory is _roofline else {"dp"}
    for parameter in parameters:
        if parameter not in taken:
            raise ConfigError(
                f"cost model {name!r}: unknown parameter {parameter!r}{nearest(parameter, taken)}"
            )
    if context.get("calibration") is not None and "calibration" not in taken:
        raise ConfigError(f"--calibration: got {context['calibration']!r}, but cost model {name!r} uses none")
    return {**{key: value for key, value in context.items() if key in taken}, **parameters}
