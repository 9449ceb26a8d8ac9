"""The page of a plan: the answer first, every chart drawn, the same page from the directory."""

from __future__ import annotations

import json
from html import escape

import pytest
from stepline.sim.cli.main import main
from stepline.sim.report.charts_plan import charts, tables

from .browser import browser, needs_browser


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small plan: two GPUs, one of which is far too slow for the objectives at any price."""
    here = tmp_path_factory.mktemp("plan")
    rows = [
        {"timestamp": 125 * i, "input_length": 100 + 131 * i % 1500, "output_length": 20 + i % 150}
        for i in range(300)
    ]
    (here / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [
        "--slo",
        "ttft_p99<1,tpot_p99<0.05",
        "--gpu",
        "h100-sxm,l40s",
        "--requests",
        "150",
        "--tolerance",
        "0.3",
    ]
    command = [
        "plan",
        "--trace",
        str(here / "t.jsonl"),
        *flags,
        "--jobs",
        "1",
        "--quiet",
        "--out",
        str(here / "p"),
    ]
    assert main(command) == 0
    return here / "p"


def test_the_answer_is_the_heading(made):
    plan = json.loads((made / "plan.json").read_text())
    text = (made / "plan.html").read_text()
    assert f"<h1>{escape(plan['answer'])}</h1>" in text
    assert plan["winner"]["label"] in plan["answer"]


def test_looks_are_kept_and_make_curves(made):
    plan = json.loads((made / "plan.json").read_text())
    for row in plan["candidates"]:
        if row["status"] != "simulated":
            continue
        rates = {look["rate_per_s"]: look["ok"] for look in row["looks"]}
        assert len(rates) >= 3
        assert max(rate for rate, ok in rates.items() if ok) <= row["bound_per_s"]
        assert any(not ok for ok in rates.values())
    found = tables(plan)
    assert all(look["goodput"] == look["rate_per_s"] * look["good_frac"] for look in found["looks"])
    names = [chart.name for chart in charts(plan)]
    assert names == ["front", "costs", "good_frac", "goodput", "rates", "loads"]


def test_the_page_is_made_again_from_its_directory(made, tmp_path):
    assert main(["report", str(made), "--out", str(tmp_path / "again.html"), "--quiet"]) == 0
    assert (tmp_path / "again.html").read_bytes() == (made / "plan.html").read_bytes()


def test_a_plan_makes_one_page_only(made, capsys):
    assert main(["report", str(made), "--format", "md"]) == 2
    assert "is a plan" in capsys.readouterr().err


def test_a_plan_that_nobody_carries_has_a_page():
    from stepline.sim.report.plan_page import plan_page

    row = {
        "label": "a",
        "status": "infeasible",
        "why": "does not fit",
        "settings": {"gpu": "l4"},
        "looks": [],
    }
    plan = {
        "load": {"requests_per_s": 1.0, "tokens_per_request": 10.0}, "slo": None, "winner": None, "fleets": [], "details": "",
        "candidates": [row], "load_sensitivity": [],
    }  # fmt: skip
    text = plan_page(plan, "No candidate carries it.", "simulate plan")
    assert "No candidate carries it." in text
    assert "does not fit" in text


@needs_browser
def test_a_browser_draws_every_chart_and_its_controls_work(made):
    script = """
    const drawn = [...document.querySelectorAll(".chart canvas")].map((canvas) => {
      const pixels = copied(canvas).data;
      const colors = new Set();
      for (let i = 0; i < pixels.length; i += 4) if (pixels[i + 3] > 128) colors.add(pixels[i] << 8 | pixels[i + 2]);
      return colors.size;
    });
    const front = () => stepline.views.get("front").scenegraph().toJSON();
    const before = front();
    const choice = document.querySelector("select[data-param]");
    choice.value = "tpot_p99"; choice.dispatchEvent(new Event("change")); await frames();
    const box = document.querySelector("[data-checks] input");
    box.click(); await frames();
    return { drawn, moved: before !== front(), shown: stepline.state.shown, unchecked: box.value };
    """
    with browser() as page:
        page.open(made / "plan.html")
        found = page.script(script)
        assert page.console == []
        page.open(made / "plan.html", width=390)
        assert not page.script("return document.documentElement.scrollWidth > 390"), "wider than a phone"
    assert len(found["drawn"]) == 6
    assert min(found["drawn"]) >= 4
    assert found["moved"]
    assert found["unchecked"] not in found["shown"]
