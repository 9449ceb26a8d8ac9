"""`simulate completion`: a script that teaches a shell the verbs, flags and names of `simulate`."""

from __future__ import annotations

import importlib
import shlex
from argparse import Action
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from stepline.traces.errors import ConfigError, nearest

from .parser import Parser, captured

SHELLS = ("bash", "zsh", "fish")

_EPILOG = """\
examples:
  simulate completion bash >> ~/.bashrc
  simulate completion zsh > "${fpath[1]}/_simulate"
  simulate completion fish > ~/.config/fish/completions/simulate.fish

The script holds the names that exist now: write it again after installing policies of your own."""

_GROUPS = {
    "policy": "stepline.batch_policies",
    "kv_eviction": "stepline.eviction_policies",
    "preemption": "stepline.preemption_policies",
    "admission": "stepline.admission_policies",
    "kv_compression": "stepline.kv_compressions",
    "routing": "stepline.routing_policies",
}
_LISTS = ("models", "gpus", "engines", "policies")
FILES = "<files>"
"""In place of names: the shell completes files."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag: what it says, and what may follow it (None: nothing; `FILES`; or names, maybe none known)."""

    name: str
    text: str
    values: tuple[str, ...] | str | None


def main(argv: Sequence[str]) -> int:
    """Print the script for a shell; returns the exit code, 0. Raises `ConfigError` for an unknown shell."""
    parser = Parser(prog="simulate completion", description=__doc__, epilog=_EPILOG)
    parser.add_argument("shell", metavar="|".join(SHELLS), help="the shell to write it for")
    args = parser.parse_args(list(argv))
    if args.shell not in SHELLS:
        raise ConfigError(f"simulate completion: got {args.shell!r}{nearest(args.shell, SHELLS)}")
    make: dict[str, Callable[[dict[str, list[Flag]]], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    print(make[args.shell](commands()), end="")
    return 0


def commands() -> dict[str, list[Flag]]:
    """Flags by command: "" for the bare one, "compare", "trace describe", ..."""
    from . import run, trace
    from .main import verbs

    names = _names()
    found = {"": _flags(captured(run.main), names)}
    for verb in verbs():
        if verb == "trace":
            found["trace"] = []
            for sub, (place, _) in trace.VERBS.items():
                module, _, function = place.partition(":")
                found[f"trace {sub}"] = _flags(
                    captured(getattr(importlib.import_module(module), function)), names
                )
            continue
        entry = importlib.import_module(f"stepline.sim.cli.{verb}").main
        found[verb] = [] if verb == "completion" else _flags(captured(entry), names)
    return found


def _names() -> dict[str, tuple[str, ...]]:
    """Known names by setting."""
    from ..cost.catalogue import known_engines, known_gpus, known_models
    from ..study.config import BACKENDS, ELEMENTWISE

    found = {setting: tuple(sorted(p.name for p in entry_points(group=g))) for setting, g in _GROUPS.items()}
    found |= {"model": tuple(known_models()), "gpu": tuple(known_gpus()), "engine": tuple(known_engines())}
    switches = dict.fromkeys(("enforce_eager", "enable_expert_parallel", "enable_lora"), ("true", "false"))
    return found | {"attention_backend": BACKENDS, "elementwise": ELEMENTWISE} | switches


def _flags(parser: Any, names: dict[str, tuple[str, ...]]) -> list[Flag]:
    flags = []
    for action in parser._actions:
        text = (action.help or "").split("\n", 1)[0].replace("%%", "%")
        flags += [Flag(n, text, _values(action, names)) for n in action.option_strings if n.startswith("--")]
    return flags


def _values(action: Action, names: dict[str, tuple[str, ...]]) -> tuple[str, ...] | str | None:
    if action.nargs == 0:
        return None
    if action.choices is not None:
        return tuple(str(c) for c in action.choices)
    if action.dest in names:
        return names[action.dest]
    metavar = str(action.metavar or "")
    return FILES if any(word in metavar for word in ("FILE", "DIR", "PATH", "OUT", "toml")) else ()


def _subverbs(found: dict[str, list[Flag]], path: str) -> list[str]:
    """The verbs that may follow a path."""
    start = f"{path} " if path else ""
    return sorted(
        {c[len(start) :].split(" ", 1)[0] for c in found if c and c.startswith(start) and c != path}
    )


def _words(path: str, found: dict[str, list[Flag]], lists: dict[str, tuple[str, ...]]) -> str:
    return " ".join([*_subverbs(found, path), *(f.name for f in found[path]), *lists.get(path, ())])


def _names_of(verb: str, names: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What a listing verb may be asked about."""
    if verb == "policies":
        return tuple(sorted({name for group in _GROUPS for name in names[group]}))
    return names[verb.rstrip("s")]


def _table(found: dict[str, list[Flag]]) -> tuple[str, str]:
    """Two `case` bodies: words by path, and values by `path flag` ("-": files)."""
    names = _names()  # reading the installed entry points takes a while
    lists = {verb: _names_of(verb, names) for verb in _LISTS}
    words = "".join(
        f"    {shlex.quote(path)}) words={shlex.quote(_words(path, found, lists))} ;;\n" for path in found
    )
    values = ""
    for path, flags in found.items():
        for flag in flags:
            if flag.values is not None:
                listed = "-" if flag.values == FILES else " ".join(flag.values)
                values += (
                    f"    {shlex.quote(f'{path} {flag.name}'.strip())}) values={shlex.quote(listed)} ;;\n"
                )
    return words, values


_LOOKUP = """\
_simulate_words() {{
  local words=
  case "$1" in
{words}  esac
  printf '%s' "$words"
}}
_simulate_values() {{
  local values=@
  case "$1" in
{values}  esac
  printf '%s' "$values"
}}
"""

_BASH = """\
# simulate: completion for bash
{lookup}_simulate() {{
  local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} path= word values
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$word" in -*) break ;; esac
    case " $(_simulate_words "$path") " in *" $word "*) path="${{path:+$path }}$word" ;; *) break ;; esac
  done
  values=$(_simulate_values "${{path:+$path }}$prev")
  COMPREPLY=()
  if [ "$values" = - ]; then compopt -o default; return; fi
  if [ "$values" != @ ]; then
    local before=; case "$cur" in *,*) before="${{cur%,*}},"; cur="${{cur##*,}}" ;; esac
    COMPREPLY=($(compgen -P "$before" -W "$values" -- "$cur")); return
  fi
  COMPREPLY=($(compgen -W "$(_simulate_words "$path")" -- "$cur"))
  [ ${{#COMPREPLY[@]}} -gt 0 ] || compopt -o default
}}
complete -F _simulate simulate
"""

_ZSH = """\
#compdef simulate
# simulate: completion for zsh
{lookup}_simulate() {{
  local cur=${{words[CURRENT]}} prev=${{words[CURRENT-1]}} path_= word values
  for word in "${{(@)words[2,CURRENT-1]}}"; do
    [[ "$word" == -* ]] && break
    [[ " $(_simulate_words "$path_") " == *" $word "* ]] || break
    path_="${{path_:+$path_ }}$word"
  done
  values=$(_simulate_values "${{path_:+$path_ }}$prev")
  if [[ "$values" == - ]]; then _files; return; fi
  if [[ "$values" != @ ]]; then compset -P '*,'; compadd -- ${{=values}}; return; fi
  compadd -- ${{=$(_simulate_words "$path_")}} || _files
}}
if [ "$funcstack[1]" = _simulate ]; then _simulate "$@"; else compdef _simulate simulate; fi
"""


def _bash(found: dict[str, list[Flag]]) -> str:
    words, values = _table(found)
    return _BASH.format(lookup=_LOOKUP.format(words=words, values=values))


def _zsh(found: dict[str, list[Flag]]) -> str:
    words, values = _table(found)
    return _ZSH.format(lookup=_LOOKUP.format(words=words, values=values))


def _fish(found: dict[str, list[Flag]]) -> str:
    from .main import VERBS

    lines = ["# simulate: completion for fish", "complete -c simulate -f"]
    verbs = " ".join(_subverbs(found, ""))
    for path, flags in found.items():
        when = " && ".join(f"__fish_seen_subcommand_from {word}" for word in path.split())
        when = when or f"not __fish_seen_subcommand_from {verbs}"
        start = f"complete -c simulate -n {shlex.quote(when)}"
        lines += [f"{start} -a {v} -d {shlex.quote(VERBS.get(v, ''))}" for v in _subverbs(found, path)]
        for flag in flags:
            line = f"{start} -l {flag.name[2:]} -d {shlex.quote(flag.text)}"
            if flag.values == FILES:
                line += " -r -F"
            elif flag.values is not None:
                line += f" -x -a {shlex.quote(' '.join(flag.values))}"
            lines.append(line)
    return "\n".join(lines) + "\n"
