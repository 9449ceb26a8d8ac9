"""Draw docs/terminal.svg: the terminal output of the README's first command, from a real run.

Run it from the root of the repository: `.venv/bin/python docs/terminal_picture.py`
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from rich.console import Console
from stepline.sim import compare
from stepline.sim.cli.output import title_of
from stepline.sim.report.terminal import comparison_view

COMMAND = "simulate --trace traces/samples/chat.jsonl --policy static --policy continuous --policy chunked"


def main() -> None:
    """Run the comparison and write the picture."""
    found = compare("traces/samples/chat.jsonl", policies=("static", "continuous", "chunked"))
    console = Console(record=True, width=124, file=io.StringIO(), highlight=False, force_terminal=True)
    console.print(f"$ {COMMAND}", style="dim")
    console.print(comparison_view(found, title_of(found.results)))
    svg = console.export_svg(title="simulate", unique_id="stepline-terminal")
    Path("docs/terminal.svg").write_text(with_local_fonts(svg), encoding="utf-8")


def with_local_fonts(svg: str) -> str:
    """The picture without fonts from the network: it must look the same offline."""
    svg = re.sub(r"@font-face\s*\{[^}]*\}", "", svg)
    return svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace")


if __name__ == "__main__":
    main()
