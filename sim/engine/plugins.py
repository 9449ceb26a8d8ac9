"""Find policies by name, by `module:Class` or by `file.py:Class`, and build them with the parameters in their text."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from stepline.traces.errors import ConfigError, nearest

from ..cost.registry import registered

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
        return _class_at(target, flag)
    known = plugin_names(group)
    if target not in known:
        raise ConfigError(f"{flag}: unknown name {target!r}{nearest(target, known)}; or give module:Class")
    cls: type[Any] = known[target].load()
    return cls


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
            return cls(**parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{flag} {text}: {error}") from error

    return build


def load_plugin(group: str, text: str, **kwargs: object) -> Any:
    """Build the plug-in that `text` names, e.g. `load_plugin("stepline.batch_policies", "sarathi:budget=512")`.

    Raises:
        ConfigError: unknown name (with the nearest), module, class or parameter, or a value the plug-in refuses.
    """
    return plugin_factory(group, text, **kwargs)()


def _check_parameters(cls: type[Any], parameters: Mapping[str, object], where: str) -> None:
    accepted = inspect.signature(cls).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in accepted):
        return
    names = [p.name for p in accepted if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name in parameters:
        if name not in names:
            hint = nearest(name, names) if names else " (it takes none)"
            raise ConfigError(f"{where}: unknown parameter {name!r}{hint}")


def _class_at(target: str, flag: str) -> type[Any]:
    module_name, _, class_name = target.partition(":")
    module = _import(module_name, flag)
    found = getattr(module, class_name, None)
    if not inspect.isclass(found):
        classes = [
            n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__
        ]
        raise ConfigError(
            f"{flag} {target}: no class {class_name!r} in {module_name}{nearest(class_name, classes)}"
        )
    return found


def _import(name: str, flag: str) -> Any:
    """Import a module by dotted name (the current directory counts) or a file by its path."""
    if name.endswith(".py"):
        return _import_file(Path(name), flag)
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"{flag} {name}: import failed: {error}") from error
        raise ConfigError(f"{flag}: no module {name!r} installed or in {Path.cwd()}") from error
    finally:
        sys.path.pop(0)


def _import_file(path: Path, flag: str) -> Any:
    if not path.is_file():
        raise ConfigError(f"{flag}: no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{flag}: {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
