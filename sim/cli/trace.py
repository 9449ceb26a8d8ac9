"""`simulate trace`: look at traces, check, convert, cut, scale and generate them."""

from __future__ import annotations

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError, TraceError, nearest
from stepline.traces.wording import counted

from .parser import Parser, integer, number
from .progress import working

if TYPE_CHECKING:
    from stepline.traces.formats import Extra
    from stepline.traces.trace import Trace

PROG = "simulate trace"

VERBS = {
    "describe": (
        "stepline.sim.cli.trace:describe_main",
        "rates, burstiness, lengths, reuse, sessions of a trace",
    ),
    "check": ("stepline.sim.cli.trace:check_main", "read every row; say what is wrong or odd"),
    "convert": ("stepline.sim.cli.trace:convert_main", "write a trace in another format"),
    "slice": ("stepline.sim.cli.trace:slice_main", "write a part of a trace"),
    "reuse": ("stepline.sim.cli.trace_reuse:main", "hit rate by cache size and eviction policy"),
    "synth": ("stepline.sim.cli.trace_synth:main", "generate a trace from a profile or from flags"),
    "fit": ("stepline.sim.cli.trace_synth:fit_main", "make a generator profile from a trace"),
}
"""Verb: where its `main(argv) -> int` is, imported when asked for, and what it does."""


def main(argv: Sequence[str]) -> int:
    """Run one verb of `simulate trace` and return its exit code. Raises: InputError for wrong input."""
    arguments = list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0
    verb = arguments[0]
    if verb not in VERBS:
        raise ConfigError(f"{PROG}: unknown verb {verb!r}{nearest(verb, VERBS)}")
    module, _, function = VERBS[verb][0].partition(":")
    run: Callable[[Sequence[str]], int] = getattr(importlib.import_module(module), function)
    return run(arguments[1:])


def describe_main(argv: Sequence[str]) -> int:
    """Print what a trace asks of a service, as tables or JSON; optionally draw it."""
    parser = _parser(
        "describe", "Describe a trace: rates, burstiness, lengths, dependence, reuse, sessions, clock."
    )
    parser.add_argument("trace", metavar="FILE", help="the trace; - is standard input")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument("--png", metavar="FILE", help="also write a picture")
    parser.add_argument("--html", metavar="FILE", help="also write the picture as one offline HTML file")
    _add_reading(parser)
    _add_changes(parser)
    args = parser.parse_args(list(argv))
    from stepline.traces.describe import describe

    with working(f"reading {args.trace}"):
        figures = _whole_if_unsorted(args, lambda chunks: describe(trace for trace, _ in chunks))
    _warn(figures["warnings"])
    if args.png:
        from stepline.traces.describe_picture import save_png

        save_png(figures, args.png)
    if args.html:
        from stepline.traces.describe_picture import save_html

        save_html(figures, args.html)
    if args.json:
        _print_json(figures)
        return 0
    from rich.console import Console
    from rich.table import Table
    from stepline.traces.describe_table import tables

    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty())
    for part in tables(figures):
        console.print(part)
        if isinstance(part, Table):
            console.print()
    return 0


def check_main(argv: Sequence[str]) -> int:
    """Read traces row by row: one line each, warnings on stderr. Raises: TraceError for the first wrong row."""
    parser = _parser("check", "Read every row of each trace and say what is wrong (exit code 2) or odd.")
    parser.add_argument("traces", metavar="FILE", nargs="+", help="the traces")
    parser.add_argument("--json", action="store_true", help="print one JSON object a trace")
    _add_reading(parser)
    args = parser.parse_args(list(argv))
    from stepline.traces.describe import check

    for path in args.traces:
        with working(f"reading {path}"):
            found = check(path, **_reading(args))
        if args.json:
            _print_json(found)
            continue
        odd = len(found["warnings"])
        remark = f", {counted(odd, 'warning')}" if odd else ""
        print(f"{path}: {found['trace_format']}, {counted(found['requests'], 'request')}, no errors{remark}")
        _warn(found["warnings"])
    return 0


def convert_main(argv: Sequence[str]) -> int:
    """Write a trace in another format, row by row; unknown keys are kept by the native format."""
    parser = _parser("convert", "Write a trace in another format. What the format cannot hold is counted.")
    parser.add_argument("trace", metavar="FILE", help="the trace; - is standard input")
    parser.add_argument("out", metavar="OUT", help="the file to write; .gz and .zst compress")
    parser.add_argument(
        "--to", default="native", metavar="NAME", help="native, mooncake, azure, vidur, vllm-timed"
    )
    _add_reading(parser)
    _add_changes(parser)
    args = parser.parse_args(list(argv))
    return _write(args, args.to)


def slice_main(argv: Sequence[str]) -> int:
    """Write a part of a trace; its time 0 is `--start`."""
    parser = _parser("slice", "Write the requests of a span of time, or the first ones.")
    parser.add_argument("trace", metavar="FILE", help="the trace; - is standard input")
    parser.add_argument("out", metavar="OUT", help="the file to write; .gz and .zst compress")
    parser.add_argument("--to", default="native", metavar="NAME", help="format to write (native)")
    _add_reading(parser)
    _add_changes(parser)
    args = parser.parse_args(list(argv))
    if args.start is None and args.end is None and args.rows is None:
        raise ConfigError(f"{PROG} slice: expected --start, --end or --rows")
    return _write(args, args.to)


def _write(args: Namespace, to: str) -> int:
    from stepline.traces.writing import writable_format, write_trace

    writable_format(to)
    rows = 0

    def write(chunks: Iterable[tuple[Trace, Extra | None]]) -> dict[str, int]:
        nonlocal rows
        rows = 0
        warnings: list[str] = []
        kept: list[Extra | None] = []

        def passing() -> Iterator[Trace]:
            nonlocal rows, warnings
            for trace, extra in chunks:
                rows += len(trace)
                warnings = list(trace.warnings) or warnings
                kept.append(extra)
                yield trace

        lost = write_trace(passing(), args.out, to, extras=_popping(kept))
        _warn(warnings)
        return lost

    with working(f"writing {args.out}"):
        lost = _whole_if_unsorted(args, write, keep_extra=True)
    print(f"{args.out}: {counted(rows, 'request')}, {to}")
    if lost:
        listing = ", ".join(
            f"{'unknown keys' if k == 'extra' else k} ({counted(n, 'row')})" for k, n in lost.items()
        )
        _warn([f"the {to} format cannot hold {listing}"])
    return 0


def _popping(kept: list[Extra | None]) -> Iterator[Extra | None]:
    while True:
        yield kept.pop(0)


def _whole_if_unsorted(args: Namespace, use: Callable[[Any], Any], *, keep_extra: bool = False) -> Any:
    """`use` of the trace as (chunk, unknown keys) pairs: streamed, or whole where changes or disorder ask for it."""
    from stepline.traces.reading import Reading, UnsortedError, iter_chunks

    if args.rate_scale is None and args.rate_scale_mode is not None:
        raise ConfigError("--rate-scale-mode: expected --rate-scale with it")
    if args.quantum is not None and not args.spread_quantum:
        raise ConfigError("--quantum: expected --spread-quantum with it")
    options = _reading(args)
    trace_format, size = options.pop("trace_format"), options.pop("hash_block_size")
    if not _changes(args):
        try:
            chunks = iter_chunks(args.trace, trace_format, size, keep_extra=keep_extra, **options)
            return use((chunk.trace, chunk.extra) for chunk in chunks)
        except UnsortedError:
            if args.trace == "-":
                raise
    reading = Reading(args.trace, trace_format, size, keep_extra=keep_extra, **options)
    try:
        chunk = reading.whole()
    finally:
        reading.close()
    if not _changes(args):
        return use([(chunk.trace, chunk.extra)])
    if chunk.extra is not None and any(chunk.extra):
        _warn(["unknown keys are not kept by --start, --end, --rows, --rate-scale and --spread-quantum"])
    return use([(_changed(chunk.trace, args), None)])


def _changes(args: Namespace) -> bool:
    asked = (args.start, args.end, args.rows, args.rate_scale)
    return args.spread_quantum or any(value is not None for value in asked)


def _changed(trace: Trace, args: Namespace) -> Trace:
    from stepline.traces.transform import rate_scale, slice_trace, spread_quantum

    if args.spread_quantum:
        trace = spread_quantum(trace, args.quantum, args.seed)
    if args.start is not None or args.end is not None or args.rows is not None:
        trace = slice_trace(trace, args.start, args.end, args.rows)
    if args.rate_scale is not None:
        trace = rate_scale(trace, args.rate_scale, args.rate_scale_mode or "sessions", args.seed)
    return trace


def _parser(verb: str, about: str) -> Parser:
    return Parser(prog=f"{PROG} {verb}", description=about)


def _add_reading(parser: Parser) -> None:
    group = parser.add_argument_group("reading")
    group.add_argument(
        "--trace-format", metavar="NAME", help="format of the trace (recognised by its first row)"
    )
    group.add_argument(
        "--hash-block-size", type=integer, metavar="N", help="tokens per hash id where the trace does not say"
    )
    group.add_argument(
        "--request-rate", type=number, metavar="X", help="Poisson arrivals at X/s for formats without times"
    )
    group.add_argument(
        "--tokenizer", metavar="FILE", help="tokenizer.json to count the tokens of logs of text"
    )
    group.add_argument("--seed", type=integer, default=0, metavar="N", help="seed of everything random (0)")


def _reading(args: Namespace) -> dict[str, Any]:
    return {
        "trace_format": args.trace_format,
        "hash_block_size": args.hash_block_size,
        "request_rate": args.request_rate,
        "tokenizer": args.tokenizer,
        "seed": args.seed,
    }


def _add_changes(parser: Parser) -> None:
    group = parser.add_argument_group("changes, in this order")
    group.add_argument(
        "--spread-quantum", action="store_true",
        help="spread the requests of each tick of a coarse clock uniformly over that tick",
    )  # fmt: skip
    group.add_argument("--quantum", type=number, metavar="S", help="the tick in seconds (found by itself)")
    group.add_argument("--start", type=number, metavar="S", help="first second to keep; it becomes time 0")
    group.add_argument("--end", type=number, metavar="S", help="second at which to stop")
    group.add_argument("--rows", type=integer, metavar="N", help="keep at most N requests")
    group.add_argument("--rate-scale", type=number, metavar="X", help="times the arrival rate")
    group.add_argument(
        "--rate-scale-mode", choices=("sessions", "compress"),
        help="thin or clone whole sessions, or squeeze time (sessions)",
    )  # fmt: skip


def _help() -> str:
    from stepline.traces.formats import formats

    verbs = "\n".join(f"  {verb:10}{about}" for verb, (_, about) in VERBS.items())
    known = "\n".join(f"  {f.name:18}{f.about}" for f in formats())
    return (
        f"usage: {PROG} VERB ...    ({PROG} VERB --help explains one)\n\nverbs:\n{verbs}\n\n"
        f"formats, recognised by their first row, or named by --trace-format:\n{known}"
    )


def _warn(warnings: Sequence[str]) -> None:
    for text in warnings:
        print(f"{PROG}: warning: {text}", file=sys.stderr)


def _print_json(value: Any) -> None:
    import orjson

    print(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except TraceError as error:
        sys.exit(f"{PROG}: {error}")
