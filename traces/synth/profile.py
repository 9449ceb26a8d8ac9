"""Profiles: everything a workload needs, in one JSON file; shipped ones go by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import ConfigError, nearest
from . import agents, sessions  # noqa: F401  # each adds its workload to the table
from .registry import build_fields, number
from .workloads import WORKLOADS, Workload

PROFILE_VERSION = 1
PROFILE_DIR = Path(__file__).resolve().parent.parent / "profiles"


@dataclass(frozen=True, slots=True)
class Profile:
    """A named workload with its provenance.

    `workload` is an object with `kind` (see `workloads`); `duration_s` the span generated where none is asked
    for; `source` and `license` say where the numbers come from; `notes` what to know about them.
    """

    name: str
    duration_s: float
    source: str
    workload: Any
    license: str = ""
    notes: str = ""
    version: int = PROFILE_VERSION

    def __post_init__(self) -> None:
        if self.version != PROFILE_VERSION:
            raise ConfigError(f"version: got {self.version!r}, expected {PROFILE_VERSION}")
        number("duration_s", self.duration_s, low=0, above=True)
        if not isinstance(self.workload, Mapping):
            raise ConfigError(f"workload: got {self.workload!r}, expected an object with 'kind'")
        self.build()

    def build(self) -> Workload:
        """The workload's generator."""
        built: Workload = WORKLOADS.build(self.workload, "workload")
        return built


def profile_names() -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(path.stem for path in PROFILE_DIR.glob("*.json"))


def load_profile(name_or_file: str | Path) -> Profile:
    """A shipped profile by name, or any profile file by path.

    Raises: ConfigError naming the file, the key, what was got and what is expected.
    """
    path = Path(name_or_file)
    if str(name_or_file) in profile_names():
        path = PROFILE_DIR / f"{name_or_file}.json"
    elif not path.is_file():
        raise ConfigError(
            f"profile: no file and no profile {str(name_or_file)!r}{nearest(str(path), profile_names())}"
        )
    return parse_profile(path.read_bytes(), str(name_or_file))


def parse_profile(content: bytes, where: str) -> Profile:
    """The profile in `content` (JSON); `where` names it in errors."""
    try:
        spec = json.loads(content)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(spec, dict):
        raise ConfigError(f"{where}: got {type(spec).__name__}, expected an object")
    return build_fields(Profile, spec, where)


def profile_spec(profile: Profile) -> dict[str, Any]:
    """The content of the file that `profile` could be loaded from."""
    return {f.name: getattr(profile, f.name) for f in fields(profile)}


def profile_text(spec: Mapping[str, Any]) -> str:
    """A profile as JSON for people: objects indented, lists of numbers on one line each."""
    return _layout(spec, 0) + "\n"


def _layout(value: Any, depth: int) -> str:
    pad = " " * (depth + 1)
    if isinstance(value, Mapping):
        rows = [f"{pad}{json.dumps(k)}: {_layout(v, depth + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{' ' * depth}}}"
    if isinstance(value, list) and any(isinstance(v, Mapping | list) for v in value):
        return "[\n" + ",\n".join(pad + _layout(v, depth + 1) for v in value) + f"\n{' ' * depth}]"
    return json.dumps(value, ensure_ascii=False)
