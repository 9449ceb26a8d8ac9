"""Classes of the user's own, by `module:Class` or `file.py:Class`, and which line of theirs an error comes from."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import linecache
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from stepline.traces.errors import ConfigError, nearest

_STANDARD_LIBRARY = str(Path(os.__file__).parent) + os.sep
OURS = str(Path(__file__).resolve().parents[2]) + os.sep
"""Where this package's own code lies."""


def is_ours(cls: type[Any]) -> bool:
    """True for a class of this package."""
    return cls.__module__.startswith("stepline.")


def load_class(target: str, flag: str) -> type[Any]:
    """The class at `module:Class` or `file.py:Class`; modules in the current directory count.

    Raises:
        ConfigError: no such file, module or class (with the nearest), or an error while it is imported (with its line).
    """
    module_name, _, class_name = target.partition(":")
    module = _import(module_name, flag)
    found = getattr(module, class_name, None)
    if inspect.isclass(found):
        return found
    classes = [n for n, c in vars(module).items() if inspect.isclass(c) and c.__module__ == module.__name__]
    hint = nearest(class_name, classes) if classes else " (it has none)"
    raise ConfigError(f"{flag} {target}: no class {class_name!r} in {module_name}{hint}")


def described(error: BaseException, home: str | None = None) -> str:
    """An error with the user's own line that it comes from: `p.py:3, in plan: return x["a"]: KeyError: 'a'`.

    `home`: the file in which that line is looked for first; then any file but this package's.
    """
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    if isinstance(error, SyntaxError):
        return f"{_short(error.filename or '')}:{error.lineno}: {(error.text or '').strip()}: {what}"
    at = _origin(error, home)
    if at is None:
        return what
    line = linecache.getline(at.filename, at.lineno or 0).strip()
    return f"{_short(at.filename)}:{at.lineno}, in {at.name}: {line}: {what}"


def comes_from_user(error: BaseException) -> bool:
    """Whether code of the user's own was running when it was raised, below where it is looked at."""
    return _origin(error, None) is not None


def _origin(error: BaseException, home: str | None) -> traceback.FrameSummary | None:
    """The innermost frame in the file `home`, or else in any file that is neither ours nor installed."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [f for f in frames if f.filename == home] or [f for f in frames if _is_theirs(f.filename)]
    return theirs[-1] if theirs else None


def _is_theirs(filename: str) -> bool:
    path = Path(filename)
    installed = {"site-packages", "dist-packages"} & set(path.parts)
    return path.is_file() and not installed and not filename.startswith((OURS, _STANDARD_LIBRARY))


def _short(filename: str) -> str:
    """Relative to the current directory where it lies in it."""
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def _import(name: str, flag: str) -> ModuleType:
    """Import a module by dotted name or a file by its path."""
    if name.endswith(".py"):
        return _import_file(Path(name), flag)
    with _on_path(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                raise ConfigError(f"{flag}: no module {name!r} installed or in {Path.cwd()}") from error
            raise ConfigError(f"{flag} {name}: import failed: {described(error)}") from error
        except Exception as error:
            raise ConfigError(f"{flag} {name}: import failed: {described(error)}") from error


def _import_file(path: Path, flag: str) -> ModuleType:
    """Run a file as a module of its own name, which stands in no other module's way; it may import its neighbours."""
    if not path.is_file():
        raise ConfigError(f"{flag}: no file {str(path)!r}")
    path = path.resolve()
    name = f"_user_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{flag}: {str(path)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        with _on_path(path.parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{flag} {path.name}: import failed: {described(error)}") from error
    return module


@contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
