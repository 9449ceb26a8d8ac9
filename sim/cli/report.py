"""`simulate report`: a page, pictures or Markdown from the directory of a run or a comparison."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepline.traces.drafts import drafted
from stepline.traces.errors import ConfigError, nearest
from stepline.traces.wording import counted

from .files import check_parent, write_whole
from .parser import Parser

if TYPE_CHECKING:
    from stepline.sim.report.comparison_tables import ComparisonTables
    from stepline.sim.report.run_tables import RunTables

FORMATS = ("html", "md", "svg", "png", "perfetto")

_EPILOG = """\
examples:
  simulate report results/runs/chat-chunked-1a2b3c4d                       writes report.html into the directory
  simulate report RUN --format md | pbcopy                                 for a pull request
  simulate report RUN --format png --charts ttft_tail,roofline --out pictures/
  simulate report RUN_A RUN_B --out both.html                              two runs of the same trace on one page
"""


def main(argv: Sequence[str]) -> int:
    """Run the verb and return its exit code, 0. Raises `ConfigError` for a directory that is no run."""
    args = _parser().parse_args(list(argv))
    if args.format not in FORMATS:
        raise ConfigError(f"--format: got {args.format!r}{nearest(args.format, FORMATS)}")
    if _is_plan(args.directories[0]):
        _say(args, _write_plan(args))
        return 0
    tables = _read(args.directories)
    if args.format == "md":
        if (written := _write_markdown(tables, args.out)) is not None:
            _say(args, written)
    elif args.format == "html":
        place = write_page(tables, args.out or _page_place(args.directories, tables))
        _say(args, place)
    elif args.format == "perfetto":
        _say(args, _write_timeline(args.directories, args.out))
    else:
        place = args.out or args.directories[0] / "charts"
        count = write_pictures(tables, place, args.format, args.theme, args.charts)
        _say(args, f"{counted(count, 'chart')} in {place}")
    return 0


def _parser() -> Parser:
    parser = Parser(prog="simulate report", epilog=_EPILOG, description=__doc__)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR",
                        help="directory of a run or a comparison; several runs of one trace go on one page")  # fmt: skip
    parser.add_argument("--format", default="html", metavar="|".join(FORMATS), help="what to make (html)")
    parser.add_argument("--out", type=Path, metavar="PATH",
                        help="file (DIR/report.html; md: stdout), or folder of pictures (DIR/charts)")  # fmt: skip
    parser.add_argument("--charts", action="append", metavar="NAME", help="pictures: only these charts (all)")
    parser.add_argument(
        "--theme", choices=("light", "dark"), default="light", help="pictures: ground (light)"
    )
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")
    return parser


def _say(args: Any, what: object) -> None:
    if not args.quiet:
        print(f"report    {what}")


def _is_plan(directory: Path) -> bool:
    return (directory / "plan.json").is_file()


def _write_plan(args: Any) -> Path:
    """The page of a plan, made again from its directory."""
    import orjson
    from stepline.sim.report.plan_page import plan_page
    from stepline.sim.report.run_tables import read_manifest

    directory: Path = args.directories[0]
    if len(args.directories) > 1 or args.format != "html":
        raise ConfigError(f"{directory}: is a plan, which makes one page of its own (--format html)")
    place: Path = args.out or directory / "plan.html"
    check_parent(place, "--out")
    plan = orjson.loads((directory / "plan.json").read_bytes())
    if "details" not in plan:
        raise ConfigError(f"{directory}: written by an older version; make the plan again")
    command = read_manifest(directory)["command"]
    write_whole(place, plan_page(plan, plan["answer"], command).encode())
    return place


def _read(directories: Sequence[Path]) -> RunTables | ComparisonTables:
    from stepline.sim.report.comparison_tables import beside, read_comparison
    from stepline.sim.report.run_tables import read_manifest, read_run

    if len(directories) > 1:
        return beside([read_run(directory) for directory in directories])
    kind = read_manifest(directories[0]).get("kind")
    return read_comparison(directories[0]) if kind == "comparison" else read_run(directories[0])


def _page_place(directories: Sequence[Path], tables: Any) -> Path:
    from stepline.sim.report.run_tables import RunTables

    if len(directories) > 1:
        raise ConfigError("--out: expected a file to write the page of several directories to")
    return directories[0] / ("report.html" if isinstance(tables, RunTables) else "comparison.html")


def page_of(tables: RunTables | ComparisonTables) -> str:
    """The page of a run or of a comparison."""
    from stepline.sim.report.page import comparison_page, run_page
    from stepline.sim.report.run_tables import RunTables

    return run_page(tables) if isinstance(tables, RunTables) else comparison_page(tables)


def write_page(tables: RunTables | ComparisonTables, path: Path) -> Path:
    """Write the page, whole or not at all; returns its path."""
    check_parent(path, "--out")
    write_whole(path, page_of(tables).encode())
    return path


def _write_markdown(tables: RunTables | ComparisonTables, out: Path | None) -> Path | None:
    """Print the text, or write it to `out` and return that."""
    from stepline.sim.report.markdown import comparison_markdown, run_markdown
    from stepline.sim.report.run_tables import RunTables

    text = run_markdown(tables) if isinstance(tables, RunTables) else comparison_markdown(tables)
    if out is None:
        sys.stdout.write(text)
        return None
    check_parent(out, "--out")
    write_whole(out, text.encode())
    return out


def _write_timeline(directories: Sequence[Path], out: Path | None) -> Path:
    """Stream the recorded steps of one run into a timeline."""
    from stepline.sim.report.perfetto import write_perfetto
    from stepline.sim.report.run_tables import read_run, step_parts

    if len(directories) > 1:
        raise ConfigError(f"--format perfetto: holds one run, got {len(directories)} directories")
    tables = read_run(directories[0])
    if tables.chunks is None:
        raise ConfigError(f"{directories[0]}: holds no steps; simulate it with --record-steps")
    place = out or directories[0] / "timeline.json.gz"
    check_parent(place, "--out")
    with drafted(place) as draft:
        parts = step_parts(directories[0])
        write_perfetto(draft, tables.requests, parts, tables.chunks, tables.preemptions)
    return place


def write_pictures(
    tables: RunTables | ComparisonTables, folder: Path, form: str, theme: Any, names: Sequence[str] | None
) -> int:
    """Write charts as `<name>.svg` or `<name>.png` into `folder`; returns how many."""
    from stepline.sim.report import pictures
    from stepline.sim.report.charts import charts
    from stepline.sim.report.page_data import page_data
    from stepline.sim.report.run_tables import RunTables

    from .parser import listing

    runs = [tables] if isinstance(tables, RunTables) else list(tables.runs)
    data = page_data(runs)
    made = {chart.name: chart for chart in charts(data, runs[0].manifest["peaks"])}
    wanted = listing(names) or list(made)
    for name in wanted:
        if name not in made:
            raise ConfigError(f"--charts: unknown chart {name!r}{nearest(name, made)}")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file, expected a folder for the pictures")
    folder.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        draw = pictures.svg if form == "svg" else pictures.png
        write_whole(folder / f"{name}.{form}", draw(made[name], data, theme))
    return len(wanted)
