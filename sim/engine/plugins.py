"""Find policies by name, by `module:Class` or by `file.py:Class`, and build them with the parameters in their text."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from typing import Any

from stepline.traces.errors import ConfigError, SteplineError, nearest

from ..cost.registry import registered
from ..cost.user_code import described, load_class
from .guard import check_members, guarded

FLAGS = {
    "stepline.batch_policies": "--policy",
    "stepline.eviction_policies": "--kv-eviction",
    "stepline.preemption_policies": "--preemption",
    "stepline.routing_policies": "--routing",
    "stepline.cost_models": "--cost-model",
    "stepline.admission_policies": "--admission",
    "stepline.length_predictors": "predictor",
    "stepline.kv_compressions": "--kv-compression",
}
"""Entry-point group of each kind of policy and the flag that names one."""


@dataclass(frozen=True, slots=True)
class PluginText:
    """What a user wrote for a plug-in: `name`, `name:key=value,...`, `module:Class` or `module:Class:key=value,...`."""

    target: str
    parameters: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_path(self) -> bool:
        """True for `module:Class`, False for a registered name."""
        return ":" in self.target


def split_plugins(text: str) -> list[str]:
    """Cut a comma list of plug-ins; `key=value` pieces stay with the plug-in before them.

    >>> split_plugins("static,sarathi:budget=512,max_seqs=8,chunked")
    ['static', 'sarathi:budget=512,max_seqs=8', 'chunked']
    """
    found: list[str] = []
    for piece in text.split(","):
        is_parameter = "=" in piece and ":" not in piece.split("=", 1)[0]
        if is_parameter and found:
            found[-1] += f",{piece}"
        elif piece.strip():
            found.append(piece.strip())
    return found


def parse_plugin(text: str, where: str) -> PluginText:
    """Read one plug-in text; `where` names the flag in errors. Raises `ConfigError`."""
    parts = text.strip().split(":", 2)
    named = len(parts) == 1 or "=" in parts[1]
    target = parts[0] if named else ":".join(parts[:2])
    listing = ":".join(parts[1:] if named else parts[2:])
    if not parts[0] or target.endswith(":"):
        raise ConfigError(
            f"{where}: got {text!r}, expected name[:key=value,...] or module:Class[:key=value,...]"
        )
    return PluginText(target, dict(_pair(piece, where, text) for piece in listing.split(",") if piece))


def _pair(piece: str, where: str, text: str) -> tuple[str, object]:
    key, sign, value = piece.partition("=")
    if not sign or not key.strip().isidentifier():
        raise ConfigError(f"{where} {text}: got parameter {piece!r}, expected key=value")
    return key.strip(), _literal(value.strip())


def _literal(value: str) -> object:
    """`true`, `false`, `none`, an int, a float, else the text itself."""
    words: dict[str, object] = {"true": True, "false": False, "none": None}
    if value.lower() in words:
        return words[value.lower()]
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def plugin_names(group: str) -> Mapping[str, EntryPoint]:
    """Registered plug-ins of a group by name, in alphabetical order."""
    return registered(group)


def load_plugin_class(group: str, target: str) -> type[Any]:
    """The class behind a registered name or `module:Class`. Raises `ConfigError`, with the nearest name."""
    flag = FLAGS.get(group, group)
    if ":" in target:
        return guarded(load_class(target, flag), group)
    known = plugin_names(group)
    if target not in known:
        raise ConfigError(f"{flag}: unknown name {target!r}{nearest(target, known)}; or give module:Class")
    cls: type[Any] = known[target].load()
    return guarded(cls, group)


def plugin_factory(group: str, text: str, **kwargs: object) -> Callable[[], Any]:
    """A function that builds a fresh plug-in each time it is called (one a replica, for plug-ins with state).

    `kwargs` are keyword parameters of the caller; those in `text` win. Name, parameters and signature are checked
    here, so that a typing error shows before anything runs. Raises `ConfigError`.
    """
    flag = FLAGS.get(group, group)
    parsed = parse_plugin(text, flag)
    cls = load_plugin_class(group, parsed.target)
    parameters = {**kwargs, **parsed.parameters}
    _check_parameters(cls, parameters, f"{flag} {parsed.target}")

    def build() -> Any:
        try:
            plugin = cls(**parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{flag} {text}: {error}") from error
        except SteplineError:
            raise
        except Exception as error:
            raise ConfigError(f"{flag} {text}: {described(error)}") from error
        check_members(plugin, group, f"{flag} {text}")
        return plugin

    return build


def load_plugin(group: str, text: str, **kwargs: object) -> Any:
    """Build the plug-in that `text` names, e.g. `load_plugin("stepline.batch_policies", "sarathi:budget=512")`.

    Raises:
        ConfigError: unknown name (with the nearest), module, class or parameter, or a value the plug-in refuses.
    """
    return plugin_factory(group, text, **kwargs)()


def _check_parameters(cls: type[Any], parameters: Mapping[str, object], where: str) -> None:
    accepted = list(inspect.signature(cls).parameters.values())
    if any(p.kind is p.VAR_KEYWORD for p in accepted):
        return
    names = [p.name for p in accepted if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name in parameters:
        if name not in names:
            hint = nearest(name, names) if names else " (it takes none)"
            raise ConfigError(f"{where}: unknown parameter {name!r}{hint}")
    for p in accepted:
        if p.name in parameters:
            _check_kind(p.name, parameters[p.name], str(p.annotation), where)


_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "int": ((int,), "an integer"),
    "float": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
}
"""Annotations of parameters that text can be checked against."""


def _check_kind(name: str, value: object, annotation: str, where: str) -> None:
    """Refuse text where a number is wanted; classes without annotations check for themselves."""
    kind, _, absent = annotation.partition(" | ")
    if kind not in _KINDS or (value is None and absent == "None"):
        return
    kinds, expected = _KINDS[kind]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ConfigError(f"{where}: {name}: got {value!r}, expected {expected}")
