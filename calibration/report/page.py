"""One HTML page of all pictures, with Vega inside: it opens without a network."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a name for files and anchors, a heading, paragraphs above, and a chart or a table.

    `chart` is an Altair chart, `table` ready HTML; either may be None. An interactive chart has no PNG of
    use.
    """

    name: str
    heading: str
    paragraphs: tuple[str, ...] = ()
    chart: Any = None
    table: str | None = None
    still: bool = True


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The page as text. Charts are embedded by the bundled Vega, once for all of them."""
    from stepline.sim.report.page import vega_bundle

    charts = {s.name: s.chart.to_dict() for s in sections if s.chart is not None}
    body = "\n".join(_section(s) for s in sections)
    links = " · ".join(f'<a href="#{s.name}">{escape(s.heading)}</a>' for s in sections)
    return _PAGE.format(
        title=escape(title),
        lead=escape(lead),
        links=links,
        body=body,
        bundle=vega_bundle(),
        charts=json.dumps(charts, default=str).replace("</", "<\\/"),
    )


def write(out: Path, html: str, sections: Sequence[Section], formats: Sequence[str]) -> list[Path]:
    """Write `report.html` and one PNG a still picture into `out`; returns what was written."""
    out.mkdir(parents=True, exist_ok=True)
    written = []
    if "html" in formats:
        written.append(out / "report.html")
        written[-1].write_text(html, encoding="utf-8")
    if "png" in formats:
        for section in sections:
            if section.chart is not None and section.still:
                written.append(out / f"{section.name}.png")
                section.chart.save(str(written[-1]), scale_factor=1.5)
    return written


def _section(section: Section) -> str:
    paragraphs = "".join(f"<p>{escape(p)}</p>" for p in section.paragraphs)
    chart = f'<div class="chart" id="chart-{section.name}"></div>' if section.chart is not None else ""
    inside = f"<h2>{escape(section.heading)}</h2>{paragraphs}{chart}{section.table or ''}"
    return f'<section id="{section.name}">{inside}</section>'


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport"
content="width=device-width,initial-scale=1"> <title>{title}</title>
<style>
body {{ font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; color: #222;
background: #fff;
  max-width: 66rem; margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.6rem; margin-bottom: .2rem; }} h2 {{ font-size: 1.15rem; margin-top: 2.2rem; }}
nav {{ font-size: .9rem; margin: 1rem 0; }} p {{ max-width: 52rem; }}
.chart {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-size: .9rem; }}
td, th {{ padding: .2rem .9rem; text-align: right; }} td:first-child, th:first-child, td:nth-child(2),
th:nth-child(2)
  {{ text-align: left; }} tr:nth-child(even) {{ background: #f5f6f7; }}
.vega-bindings {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: .3rem
1.2rem;
  margin: .6rem 0; font-size: .9rem; }} .vega-bind-name {{ display: inline-block; min-width: 7.5rem; color:
  #555; }}
</style></head><body>
<h1>{title}</h1><p>{lead}</p><nav>{links}</nav>
{body}
<script>{bundle}</script>
<script>
const charts = {charts};
for (const [name, spec] of Object.entries(charts))
  vegaEmbed("#chart-" + name, spec, {{actions: false, renderer: "svg"}}).catch(console.error);
</script>
</body></html>
"""
