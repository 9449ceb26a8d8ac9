"""Files that a run leaves beside its directory: pages, bench JSON, metrics, timelines."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.drafts import drafted
from stepline.traces.errors import ConfigError

if TYPE_CHECKING:
    from stepline.sim.engine.result import RunResult

ONE_RUN = ("vllm_bench_json", "prometheus", "perfetto")
"""Flags of files that hold one run."""


def add_file_options(group: Any) -> None:
    """The flags of the files."""
    group.add_argument("--report", nargs="?", const="", metavar="FILE",
                       help="also one HTML page: FILE, or report.html in the directory")  # fmt: skip
    group.add_argument("--vllm-bench-json", type=Path, metavar="FILE",
                       help="also the fields of vllm bench serve --save-result (one run)")  # fmt: skip
    group.add_argument("--prometheus", type=Path, metavar="FILE",
                       help="also the metrics of a vLLM server, Prometheus text (one run)")  # fmt: skip
    group.add_argument("--perfetto", type=Path, metavar="FILE",
                       help="also a timeline for ui.perfetto.dev, .gz to compress (one run; records steps)")  # fmt: skip


def check_files(args: Namespace, labels: list[str]) -> None:
    """Refuse files that could not be written; note on `args` what the run must record for them."""
    if args.report == "" and args.no_save:
        raise ConfigError("--report: with --no-save, expected a file to write: --report FILE")
    for name in ("report", *ONE_RUN):
        path, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        if not path:
            continue
        check_parent(Path(path), flag)
        if name in ONE_RUN and len(labels) > 1:
            raise ConfigError(f"{flag}: holds one run, got {len(labels)} ({', '.join(labels)})")


def needs(args: Namespace) -> dict[str, bool]:
    """What the run must record for the files that were asked for."""
    return {"record_steps": args.perfetto is not None, "record_blocks": args.prometheus is not None}


def write_files(args: Namespace, content: Any, results: Mapping[str, RunResult], command: str) -> None:
    """Write what the flags ask for. `content`: the summary of one run, or the `Comparison` of several."""
    result = next(iter(results.values()))
    if args.vllm_bench_json is not None:
        from stepline.sim.report.run_dir import json_bytes
        from stepline.sim.report.vllm_bench import vllm_bench

        write_whole(args.vllm_bench_json, json_bytes(vllm_bench(result)))
    if args.prometheus is not None:
        from stepline.sim.report.prometheus import prometheus_text

        write_whole(args.prometheus, prometheus_text(result).encode())
    if args.perfetto is not None:
        _write_timeline(result, args.perfetto)
    if args.report:
        from .output import page_text

        write_whole(Path(args.report), page_text(content, results, command).encode())


def _write_timeline(result: RunResult, path: Path) -> None:
    from stepline.sim.report.perfetto import write_perfetto
    from stepline.sim.report.run_tables import tables_of

    tables = tables_of(result)
    if result.steps is None or tables.chunks is None:  # pragma: no cover - `needs` has seen to it
        raise ConfigError("--perfetto: the run was simulated without --record-steps")
    with drafted(path) as draft:
        write_perfetto(draft, tables.requests, [result.steps], tables.chunks, tables.preemptions)


def check_parent(path: Path, flag: str) -> None:
    """Refuse a file whose directory is not there. Raises `ConfigError`."""
    if path.is_dir():
        raise ConfigError(f"{flag}: {path} is a directory, expected a file")
    if not path.parent.is_dir():
        raise ConfigError(f"{flag}: no directory {str(path.parent)!r}")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file beside its place and move it there."""
    with drafted(path) as draft:
        draft.write_bytes(content)
