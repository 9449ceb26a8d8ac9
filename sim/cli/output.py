"""What a run leaves: directories, and tables on the terminal."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.sim.report.run_dir import MANIFEST, atomic_dir, json_bytes, versions, write_json, write_run

if TYPE_CHECKING:
    from rich.console import Console
    from stepline.sim.engine.result import RunResult

RUNS = Path("results/runs")


def save(
    content: Any,
    results: Mapping[str, RunResult],
    out: Path | None,
    trace: str,
    command: Sequence[str],
    *,
    report: bool = False,
) -> Path:
    """Write the run, or a comparison with one directory a run; returns the directory.

    `content`: the summary of one run or the `Comparison` of several. Without `out` the name is made of the trace, the
    policies and a digest of the configurations, so that the same call writes the same place. `report`: also the page
    of a single run (a comparison always has one).
    """
    target = out or RUNS / default_name(results, trace)
    words = shlex.join(command)
    with atomic_dir(target) as work:
        if isinstance(content, dict):
            write_run(next(iter(results.values())), work, command=words, figures=content)
            if report:
                (work / "report.html").write_text(page_text(content, results, words), encoding="utf-8")
        else:
            _write_comparison(content, work, words)
    return target


def page_text(content: Any, results: Mapping[str, RunResult], command: str) -> str:
    """The report page of a run or of a comparison."""
    from stepline.sim.report.page import comparison_page, run_page

    if isinstance(content, dict):
        from stepline.sim.report.run_tables import tables_of

        return run_page(tables_of(next(iter(results.values())), command=command, figures=content))
    from stepline.sim.report.comparison_tables import comparison_tables

    return comparison_page(comparison_tables(content, command=command))


def default_name(results: Mapping[str, RunResult], trace: str) -> str:
    """`<trace>-<policies>-<digest>`; the digest is of the resolved configurations and the trace's content."""
    stem = Path(trace).name.split(".", 1)[0]
    content = [{**r.config, "trace": r.config["trace"]["sha256"]} for r in results.values()]
    digest = hashlib.sha256(json_bytes(content)).hexdigest()[:8]
    labels = list(results)
    shown = "-".join(labels) if len(labels) <= 3 else f"{len(labels)}-runs"
    return f"{file_name(stem)}-{file_name(shown)[:60]}-{digest}"


def file_name(label: str) -> str:
    """A label as a file name: everything but letters, digits, `._=-` becomes `_`.

    >>> file_name("my_policy.py:Mine:budget=512,tp=2")
    'my_policy.py_Mine_budget=512_tp=2'
    """
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", label).lstrip(".") or "run"


def _write_comparison(comparison: Any, work: Path, command: str) -> None:
    from stepline.sim.report.comparison_tables import comparison_tables, ranking_of
    from stepline.sim.report.page import comparison_page

    folders: dict[str, str] = {}
    for label, result in comparison.results.items():
        folders[label] = _fresh(file_name(label), folders.values())
        folder = work / folders[label]
        folder.mkdir()
        write_run(result, folder, command=command, figures=comparison.summaries[label])
    comparison.frame().to_csv(work / "comparison.csv", index=False)
    ranking = ranking_of(comparison)
    page = comparison_page(comparison_tables(comparison, ranking=ranking, command=command))
    (work / "comparison.html").write_text(page, encoding="utf-8")
    write_json(work / MANIFEST, {**_comparison_manifest(comparison, folders, command), "ranking": ranking})


def _fresh(name: str, taken: Any) -> str:
    while name in taken:
        name += "_"
    return name


def _comparison_manifest(comparison: Any, folders: Mapping[str, str], command: str) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "kind": "comparison",
        "command": command,
        "baseline": comparison.baseline,
        "method": comparison.method,
        "runs": dict(folders),
        "versions": versions(),
    }


def print_view(content: Any, results: Mapping[str, RunResult]) -> None:
    """Print the tables of a run or comparison on stdout."""
    from stepline.sim.report.terminal import comparison_view, run_view

    title = title_of(results)
    _console().print(
        run_view(content, title) if isinstance(content, dict) else comparison_view(content, title)
    )


def print_place(directory: Path) -> None:
    """Say where the results are, and the page if there is one."""
    page = next(
        (p for name in ("report.html", "comparison.html", "plan.html") if (p := directory / name).exists()),
        None,
    )
    _console().print(f"results   {directory}", style="dim", soft_wrap=True)
    if page is not None:
        _console().print(f"page      {page}", style="dim", soft_wrap=True)


def _console() -> Console:
    """A console on stdout; 120 columns where it is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120, highlight=False)


def title_of(results: Mapping[str, RunResult]) -> str:
    """Trace, policies, model and hardware; what differs between the runs shows all its values."""
    from stepline.sim.report.titles import setup_text, trace_text

    configs = [r.config for r in results.values()]
    return f"{trace_text(configs[0])} · {' / '.join(results)} · {setup_text(configs)}"
