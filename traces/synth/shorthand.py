"""Parts of a profile as they are typed on a command line: `gamma:shape=0.5`, `ou:sigma=0.2,tau_s=60`, `512`."""

from __future__ import annotations

import json
from typing import Any

from ..errors import ConfigError


def part(text: str, where: str) -> dict[str, Any]:
    """A part's object from `kind:key=value,key=value`, JSON, or a bare number (a constant).

    Values are numbers, `true`, `false`, lists written 1/2/3, or text.
    Raises: ConfigError naming `where`.

    >>> part("markov:levels=1/3,mean_s=60/20", "--modulate")
    {'kind': 'markov', 'levels': [1, 3], 'mean_s': [60, 20]}
    """
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{where}: got {text!r}, which is not JSON: {error}") from None
        return dict(found)
    kind, _, fields = text.partition(":")
    number = _value(kind)
    if isinstance(number, int | float) and not fields:
        return {"kind": "constant", "value": number}
    spec: dict[str, Any] = {"kind": kind.strip()}
    for item in filter(None, fields.split(",")):
        key, given, value = item.partition("=")
        if not given:
            raise ConfigError(f"{where}: got {item!r}, expected key=value")
        spec[key.strip()] = _value(value)
    return spec


def _value(text: str) -> Any:
    text = text.strip()
    if "/" in text:
        return [_value(piece) for piece in text.split("/")]
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
