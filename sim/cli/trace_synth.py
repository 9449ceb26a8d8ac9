"""`simulate trace synth` generates a trace; `simulate trace fit` makes the profile that generates its like."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError
from stepline.traces.wording import counted

from .parser import Parser, integer, number
from .progress import working

if TYPE_CHECKING:
    from stepline.traces.synth import Profile
    from stepline.traces.trace import Trace

_KINDS = """
laws (lengths, gaps, pauses):  N | uniform:low=,high= | normal:centre=,spread= | lognormal:median=,sigma= |
                               exponential:mean= | gamma:shape=,mean= | weibull:shape=,mean= | geometric:again= | JSON
arrivals:                      poisson | constant | gamma:shape= | weibull:shape= | any law of gaps |
                               bursts:on_s=,off_s=,gaps_s= (laws as JSON or numbers)
modulation of the rate:        diurnal:amplitude=,period_s= | ramp:start=,end=,duration_s= |
                               spike:at_s=,duration_s=,factor= | ou:sigma=,tau_s= | markov:levels=1/4,mean_s=60/20 |
                               on-off:on_s=,off_s= | curve:time_s=0/60,factor=1/2
"""

# Flag (without --): what it says in `--help`. Those of one row make one kind of workload and exclude the others.
_OPEN = {"rate", "arrivals", "modulate"}
_USERS = {"users", "ramp-users"}
_TURNS = {"turns", "growth", "system-prompt-len", "block-size"}


def main(argv: Sequence[str]) -> int:
    """Generate a trace from a profile or from flags and write it. Raises: ConfigError, TraceError."""
    args = _synth_parser().parse_args(list(argv))
    from stepline.traces.synth import load_profile, profile_names

    if args.list_profiles:
        for name in profile_names():
            print(f"{name:22} {load_profile(name).source}")
        return 0
    profile = _profile(args)
    if args.save_profile:
        _save(args.save_profile, profile)
    if args.out is None:
        if not args.save_profile:
            raise ConfigError("OUT: expected a file to write, e.g. chat.jsonl")
        return 0
    _write(args, profile)
    return 0


def fit_main(argv: Sequence[str]) -> int:
    """Fit a profile to a trace, write it, and say how near its traces come. Raises: ConfigError, TraceError."""
    args = _fit_parser().parse_args(list(argv))
    from stepline.traces.reading import read_trace
    from stepline.traces.synth.fitted import SEEDS, distances, fit_profile
    from stepline.traces.synth.profile import Profile

    with working(f"reading {args.trace}"):
        trace = read_trace(
            args.trace,
            trace_format=args.trace_format,
            hash_block_size=args.hash_block_size,
            request_rate=args.request_rate,
        )
    for warning in trace.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    with working(f"fitting a profile to {counted(len(trace), 'request')}"):
        spec = fit_profile(
            trace,
            name=args.name or Path(args.out).name.removesuffix(".json"),
            kind=args.kind,
            parts=args.part,
            window_s=args.window,
            source=args.source,
            license=args.license,
        )
    profile = Profile(**spec)
    _save(args.out, profile)
    with working(f"comparing {len(SEEDS)} generated traces with {args.trace}"):
        found = distances(trace, profile)
    if args.json:
        print(json.dumps(found))
        return 0
    print(
        f"{args.out}: {spec['workload']['kind']}, fitted to {counted(len(trace), 'request')}; medians of {len(SEEDS)} generated traces:"
    )
    _print_distances(found)
    return 0


def _print_distances(found: dict[str, float]) -> None:
    labels = {
        "ks_input": "input",
        "ks_output": "output",
        "ks_gap": "gap",
        "ks_input_output": "(input, output)",
    }
    shown = ", ".join(f"{label} {found[key]:.3f}" for key, label in labels.items())
    print(f"  Kolmogorov-Smirnov distance: {shown}")
    windows = [key.removeprefix("dispersion_") for key in found if key.startswith("dispersion_")]
    for window in windows:
        made, real = found[f"dispersion_{window}"], found[f"real_dispersion_{window}"]
        if real == real:  # NaN: fewer than two such windows
            print(f"  index of dispersion at {window}: {made:.2f} (trace {real:.2f})")


def _profile(args: Namespace) -> Profile:
    from stepline.traces.synth import load_profile

    asked = sorted(_asked(args))
    if args.profile is not None:
        if asked:
            raise ConfigError(f"--{asked[0]}: expected no such flag with --profile")
        return load_profile(args.profile)
    if not asked:
        raise ConfigError(
            "expected --profile NAME|FILE, or flags such as --rate 2 --input-len 512 --output-len 128"
        )
    return _profile_of_flags(args, set(asked))


def _asked(args: Namespace) -> set[str]:
    names = _OPEN | _USERS | _TURNS | {"input-len", "output-len", "think"}
    return {name for name in names if getattr(args, name.replace("-", "_")) not in (None, [])}


def _profile_of_flags(args: Namespace, asked: set[str]) -> Profile:
    """A profile from flags: independent requests, closed-loop users, or sessions of several turns."""
    from stepline.traces.synth.profile import Profile
    from stepline.traces.synth.registry import build_fields

    for needed in ("input-len", "output-len"):
        if needed not in asked:
            raise ConfigError(
                f"--{needed}: missing, expected a law, e.g. 512 or lognormal:median=300,sigma=1"
            )
    if "turns" in asked:
        workload = _sessions(args, asked)
    elif "users" in asked:
        workload = _users(args, asked)
    else:
        _refuse(asked & (_TURNS | _USERS | {"think"}), "--turns or --users")
        workload = {"kind": "open", "arrivals": _arrivals(args), "lengths": _lengths(args)}
    spec = {
        "name": args.name or "flags",
        "workload": workload,
        "duration_s": 600.0,
        "source": "flags of synth",
    }
    return build_fields(Profile, spec, "flags")


def _users(args: Namespace, asked: set[str]) -> dict[str, Any]:
    _refuse(asked & (_TURNS | _OPEN), "--turns or no --users")
    extra = {} if args.think is None else {"think_s": _law(args.think, "--think")}
    within_s = args.ramp_users or 0.0
    return {"kind": "users", "users": args.users, "within_s": within_s, "lengths": _lengths(args), **extra}


def _sessions(args: Namespace, asked: set[str]) -> dict[str, Any]:
    arrivals: dict[str, Any]
    if "users" in asked:
        _refuse(asked & _OPEN, "no --users")
        arrivals = {"kind": "users", "count": args.users, "within_s": args.ramp_users or 0.0}
    else:
        _refuse(asked & {"ramp-users"}, "--users")
        arrivals = _arrivals(args)
    size = args.block_size or 512
    workload: dict[str, Any] = {
        "kind": "agents",
        "arrivals": arrivals,
        "turns": _law(args.turns, "--turns"),
        "first_input": _law(args.input_len, "--input-len"),
        "growth": _law(args.growth if args.growth is not None else args.input_len, "--growth"),
        "outputs": _law(args.output_len, "--output-len"),
        "think_s": _law(args.think if args.think is not None else "0", "--think"),
        "max_input_tokens": 1_000_000_000,
        "block_size": size,
    }
    if args.system_prompt_len:
        workload["systems"] = [{"blocks": args.system_prompt_len // size, "weight": 1}]
    if "users" in asked:
        workload["restart_s"] = workload["think_s"]
    return workload


def _refuse(flags: set[str], needed: str) -> None:
    if flags:
        raise ConfigError(f"--{min(flags)}: expected {needed} with it")


def _arrivals(args: Namespace) -> dict[str, Any]:
    from stepline.traces.synth.shorthand import part

    text = args.arrivals or "poisson"
    modulation = [part(m, "--modulate") for m in args.modulate]
    spec = {"kind": "exponential"} if text == "poisson" else part(text, "--arrivals")
    if spec["kind"] == "bursts":
        if args.rate is not None or modulation:
            raise ConfigError(
                "--arrivals: bursts have a rate of their own, expected no --rate and no --modulate"
            )
        return {
            k: v if k.startswith(("kind", "memory")) else _law(v, f"--arrivals {k}") for k, v in spec.items()
        }
    if args.rate is None:
        raise ConfigError("--rate: missing, expected requests (or sessions) per second")
    gaps = {"kind": "constant", "value": 1} if spec == {"kind": "constant"} else spec
    return {"kind": "renewal", "rate_per_s": args.rate, "gaps": gaps, "modulation": modulation}


def _lengths(args: Namespace) -> dict[str, Any]:
    inputs, outputs = _law(args.input_len, "--input-len"), _law(args.output_len, "--output-len")
    return {"kind": "independent", "input": inputs, "output": outputs}


def _law(text: Any, flag: str) -> dict[str, Any]:
    from stepline.traces.synth.laws import law
    from stepline.traces.synth.shorthand import part

    spec = part(str(text), flag) if not isinstance(text, dict) else text
    law(spec, flag)
    return spec


def _write(args: Namespace, profile: Profile) -> None:
    from stepline.traces.synth import synth_blocks
    from stepline.traces.writing import writable_format, write_trace

    writable_format(args.to)
    rows, last_s = 0, 0.0

    def passing(blocks: Iterator[Trace]) -> Iterator[Trace]:
        nonlocal rows, last_s
        for block in blocks:
            rows += len(block)
            last_s = float(block.arrival_s[-1]) if len(block) else last_s
            yield block

    blocks = synth_blocks(
        profile,
        seed=args.seed,
        duration_s=args.duration,
        n_requests=args.requests,
        rate_scale=args.rate_scale,
    )
    duration_s = profile.duration_s if args.duration is args.requests is None else args.duration
    with working(lambda: f"{args.out}: {_how_far(rows, args.requests, last_s, duration_s)}"):
        lost = write_trace(passing(blocks), args.out, args.to)
    print(f"{args.out}: {counted(rows, 'request')} in {last_s:,.1f} s, {args.to}")
    for name, count in lost.items():
        print(f"warning: the {args.to} format cannot hold {name} ({counted(count, 'row')})", file=sys.stderr)


def _how_far(rows: int, n_requests: int | None, last_s: float, duration_s: float | None) -> str:
    """Requests made and the time they span, of those that are asked for where that is known.

    >>> _how_far(1200, None, 31.0, 600.0)
    '1,200 requests, 31 of 600 s generated'
    """
    all_rows = "" if n_requests is None else f" of {n_requests:,}"
    whole = "" if duration_s is None else f" of {duration_s:,.0f}"
    return f"{rows:,}{all_rows} requests, {last_s:,.0f}{whole} s generated"


def _save(path: str, profile: Profile) -> None:
    from stepline.traces.synth.profile import profile_spec, profile_text
    from stepline.traces.writing import replacing

    with replacing(Path(path)) as out:
        out.write(profile_text(profile_spec(profile)).encode())


def _synth_parser() -> Parser:
    parser = Parser(
        prog="simulate trace synth",
        description="Generate a trace from a profile, or from flags. The same seed gives the same bytes.",
        epilog=_KINDS,
    )
    parser.add_argument("out", metavar="OUT", nargs="?", help="the file to write; .gz and .zst compress")
    parser.add_argument(
        "--profile", metavar="NAME|FILE", help="a shipped profile (--list-profiles) or a file"
    )
    parser.add_argument("--list-profiles", action="store_true", help="list the shipped profiles and stop")
    parser.add_argument("--seed", type=integer, default=0, metavar="N", help="seed of everything random (0)")
    parser.add_argument(
        "--duration", type=number, metavar="S", help="seconds to generate (the profile's own; 600)"
    )
    parser.add_argument("--requests", type=integer, metavar="N", help="at most so many requests")
    parser.add_argument(
        "--rate-scale", type=number, default=1.0, metavar="X", help="times the rate, or users (1)"
    )
    parser.add_argument("--to", default="native", metavar="NAME", help="format to write (native)")
    parser.add_argument("--name", metavar="NAME", help="name of a profile made of flags")
    parser.add_argument("--save-profile", metavar="FILE", help="also write the profile, to be edited")
    group = parser.add_argument_group("instead of a profile")
    group.add_argument(
        "--rate", type=number, metavar="X", help="requests (with --turns: sessions) per second"
    )
    group.add_argument("--arrivals", metavar="PART", help="how they are spaced (poisson)")
    group.add_argument(
        "--modulate", action="append", default=[], metavar="PART", help="how the rate changes; repeat"
    )
    group.add_argument("--input-len", metavar="LAW", help="prompt tokens (with --turns: of the first prompt)")
    group.add_argument("--output-len", metavar="LAW", help="output tokens")
    group.add_argument(
        "--users", type=integer, metavar="N", help="closed loop: so many users, one request each at a time"
    )
    group.add_argument("--ramp-users", type=number, metavar="S", help="users start evenly over S seconds (0)")
    group.add_argument("--think", metavar="LAW", help="seconds between an answer and the next request (0)")
    group.add_argument(
        "--turns", metavar="LAW", help="sessions of so many requests, each prompt holding the last"
    )
    group.add_argument(
        "--growth", metavar="LAW", help="tokens a prompt grows by from turn to turn (--input-len)"
    )
    group.add_argument(
        "--system-prompt-len", type=integer, metavar="N", help="leading tokens that all sessions share"
    )
    group.add_argument("--block-size", type=integer, metavar="N", help="tokens per hash id (512)")
    return parser


def _fit_parser() -> Parser:
    parser = Parser(
        prog="simulate trace fit",
        description="Make a profile from a trace: tables of lengths, arrivals, sessions and reuse where it has ids.",
    )
    parser.add_argument("trace", metavar="FILE", help="the trace")
    parser.add_argument("out", metavar="OUT", help="the profile to write, e.g. mine.json")
    parser.add_argument("--name", metavar="NAME", help="name of the profile (that of OUT)")
    parser.add_argument("--kind", metavar="KIND", help="open, sessions or agents (by what the trace has)")
    parser.add_argument("--part", action="append", default=[], metavar="RULE",
                        help="rows that are an application of their own, e.g. 'output_length>350'; repeat")  # fmt: skip
    parser.add_argument(
        "--window", type=number, default=300.0, metavar="S", help="width of the slow curve (300)"
    )
    parser.add_argument("--source", metavar="TEXT", help="where the trace comes from (its sidecar)")
    parser.add_argument("--license", metavar="TEXT", help="its license (its sidecar)")
    parser.add_argument("--json", action="store_true", help="print the distances as JSON")
    parser.add_argument(
        "--trace-format", metavar="NAME", help="format of the trace (recognised by its first row)"
    )
    parser.add_argument("--hash-block-size", type=integer, metavar="N", help="tokens per hash id")
    parser.add_argument(
        "--request-rate", type=number, metavar="X", help="Poisson arrivals for formats without times"
    )
    return parser
