"""`simulate trace reuse`: a trace's hit rate by cache size and eviction policy."""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.errors import ConfigError

from .files import check_parent, write_whole
from .parser import Parser, integer, listing, number
from .progress import working

if TYPE_CHECKING:
    import pandas as pd


def main(argv: Sequence[str]) -> int:
    """Replay, write, print; returns the exit code. Raises: InputError for wrong input."""
    args = _parser().parse_args(list(argv))
    if (args.file is None) == (args.trace is None):
        raise ConfigError(
            "FILE: expected one file of requests with block ids, e.g. traces/samples/agent.jsonl"
        )
    args.trace = args.trace or args.file
    from stepline.sim.engine.plugins import split_plugins
    from stepline.sim.study.reuse import ceiling, default_capacities, frame, reuse
    from stepline.traces.reading import read_trace

    policies = [p for text in args.kv_eviction or ["lru,fifo,oracle-optimal"] for p in split_plugins(text)]
    if not policies:
        raise ConfigError(f"--kv-eviction: got {','.join(args.kv_eviction)!r}, expected a value")
    sizes = _capacities(args.capacity_blocks)
    if args.csv is not None:
        check_parent(args.csv, "--csv")
    with working(f"caches over {args.trace}", shown=not args.quiet):
        trace = read_trace(args.trace, trace_format=args.trace_format, hash_block_size=args.hash_block_size)
        points = frame(reuse(trace, policies, sizes or default_capacities(trace), args.warmup_frac))
    if args.csv is not None:
        write_whole(args.csv, points.to_csv(index=False).encode())
    if args.json:
        print(points.to_json(orient="records", indent=2))
    elif not args.quiet:
        _print(points, args.trace, ceiling(trace, args.warmup_frac))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="simulate trace reuse",
        description="Hit rate of a trace's prompt tokens by cache size and eviction policy: whole trace blocks, "
        "nothing pinned, requests in order, no timing.",
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help="the trace, as for the other trace verbs")
    parser.add_argument("--trace", metavar="FILE", help="the same; its requests need hash_ids")
    parser.add_argument(
        "--kv-eviction", action="append", metavar="NAME|module:Class",
        help="eviction policies, repeated or with commas (lru,fifo,oracle-optimal)",
    )  # fmt: skip
    parser.add_argument(
        "--capacity-blocks", action="append", metavar="N",
        help="cache sizes in blocks of the trace, repeated or with commas (powers of two)",
    )  # fmt: skip
    parser.add_argument(
        "--warmup-frac", type=number, default=0.0, metavar="FRAC",
        help="share of the requests that fill the cache and are not measured (0)",
    )  # fmt: skip
    parser.add_argument(
        "--csv", type=Path, metavar="FILE", help="write policy, capacity_blocks, hit_token_frac"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of a table")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument(
        "--trace-format", metavar="NAME", help="format of the trace (recognised by its first row)"
    )
    parser.add_argument(
        "--hash-block-size", type=integer, metavar="N", help="tokens per hash id where the trace does not say"
    )
    return parser


def _capacities(texts: Sequence[str] | None) -> list[int]:
    try:
        sizes = [integer(item) for item in listing(texts)]
    except ArgumentTypeError as error:
        raise ConfigError(f"--capacity-blocks: {error}") from None
    for size in sizes:
        if size < 1:
            raise ConfigError(f"--capacity-blocks: got {size}, expected integers >= 1")
    if texts and not sizes:
        raise ConfigError(f"--capacity-blocks: got {','.join(texts)!r}, expected integers")
    return list(dict.fromkeys(sizes))


def _print(points: pd.DataFrame, name: str, limit: float) -> None:
    """A row a policy, a column a capacity, in per cent."""
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    sizes = list(dict.fromkeys(points["capacity_blocks"]))
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("blocks", no_wrap=True)
    for size in sizes:
        table.add_column(f"{size:,}", justify="right", no_wrap=True)
    by_place: dict[Any, float] = points.set_index(["policy", "capacity_blocks"])["hit_token_frac"].to_dict()
    for policy in dict.fromkeys(points["policy"]):
        table.add_row(policy, *[f"{100 * by_place[policy, size]:.2f} %" for size in sizes])
    console = Console(highlight=False)
    wide = console.options.update(max_width=1000)  # a table cut to a pipe's 80 columns would lose its figures
    console.width = max(console.width, Measurement.get(console, wide, table).maximum)
    console.print(
        f"{Path(name).name}: prompt tokens that hit, by cache size (unlimited: {100 * limit:.2f} %)"
    )
    console.print(table)
