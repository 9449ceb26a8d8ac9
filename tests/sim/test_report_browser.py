"""The pages in a real browser, offline: no console message, every chart drawn, the brush moves every panel."""

from __future__ import annotations

import json
import re

import pytest
from stepline.sim.cli.main import main

from .browser import browser, needs_browser

pytestmark = needs_browser

LOOK = """
const drawn = () => {
  const blank = [];
  for (const canvas of document.querySelectorAll(".chart canvas")) {
    const pixels = copied(canvas).data;
    const colors = new Set();
    for (let i = 0; i < pixels.length; i += 4) {
      if (pixels[i + 3] > 128) colors.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
    }
    if (colors.size < 5) blank.push(canvas.closest(".chart").id);
  }
  const root = document.documentElement;
  return {
    blank, charts: [...stepline.views.keys()], canvases: document.querySelectorAll(".chart canvas").length,
    early: performance.getEntriesByName("stepline-in-sight").length, faint: document.querySelectorAll(".brushed .whole-run").length,
    wide: root.scrollWidth > root.clientWidth, ground: getComputedStyle(document.body).backgroundColor,
  };
};
const look = () => ({
  tiles: document.getElementById("tiles").innerText,
  text: document.getElementById("window").textContent,
  t: [stepline.state.t0, stepline.state.t1],
});
"""

SEEN = "return { ...drawn(), ...look() };"

PANELS = """
const views = [...stepline.views].filter(([name]) => name !== "overview");
return Object.fromEntries(views.map(([name, view]) => [name, view.scenegraph().toJSON()]));
"""

DARK = """
const old = [...document.querySelectorAll(".chart canvas")];
document.getElementById("theme").click();
while (old.some((canvas) => canvas.isConnected)) await frames(); // every chart is drawn anew
await frames();
return { ...drawn(), ...look() };
"""

RESET = """
document.getElementById("reset").click(); await frames();
return look();
"""

BOTH = """
const whole = drawn(), before = look();
const scene = (name) => stepline.views.get(name).scenegraph().toJSON();
const lines = (name) => new Set(scene(name).match(/"stroke":"#[0-9a-f]{6}"/g)).size;
const all = lines("ttft_ecdf");
document.querySelector("#runs input").click(); await frames();
const one = lines("ttft_ecdf");
const focus = document.getElementById("focus");
focus.value = [...focus.options].map((o) => o.value).find((v) => v !== stepline.state.focus);
focus.dispatchEvent(new Event("change")); await frames();
const after = look();
const { t0, t1 } = stepline.page.params;
await stepline.select(t0, (t0 + t1) / 2); await frames();
return { whole, before, all, one, shown: stepline.state.shown, after, brushed: drawn() };
"""


@pytest.fixture(scope="module")
def looks(tmp_path_factory):
    """What a browser sees of a run under pressure (preemptions, prefix hits, chunks) and of a comparison."""
    here = tmp_path_factory.mktemp("pages")
    rows = [
        {"timestamp": i * 40, "input_length": 200 + 97 * i % 1500, "output_length": 20 + i % 90,
         "hash_ids": [i % 5] + [1000 * i + j for j in range((200 + 97 * i % 1500 + 511) // 512 - 1)], "block_size": 512}
        for i in range(250)
    ]  # fmt: skip
    (here / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trace = [
        "--trace",
        str(here / "t.jsonl"),
        "--num-gpu-blocks-override",
        "300",
        "--quiet",
        "--slo",
        "ttft_p99<2",
    ]
    assert main([*trace, "--report", "--record-steps", "--out", str(here / "run")]) == 0
    assert main([*trace, "--policy", "continuous,chunked", "--out", str(here / "both")]) == 0
    with browser() as page:
        page.open(here / "run" / "report.html")
        run = {"whole": page.script(LOOK + SEEN), "panels": page.script(PANELS)}
        page.drag("#chart-overview canvas", 0.1, 0.25)
        run |= {"brushed": page.script(LOOK + SEEN), "brushed_panels": page.script(PANELS)}
        run |= {"dark": page.script(LOOK + DARK), "after": page.script(LOOK + RESET)}
        page.open(here / "both" / "comparison.html", width=390)
        both = page.script(LOOK + BOTH)
        return {"run": run, "both": both, "console": page.console}


@pytest.mark.parametrize("name", ["run", "both"])
def test_every_chart_is_drawn_and_the_console_is_silent(looks, name):
    assert looks["console"] == []
    whole = looks[name]["whole"]
    assert whole["blank"] == []
    assert not whole["wide"], "the page is wider than the window"
    assert whole["early"] == 1, "what is in sight is drawn before the rest"
    assert whole["canvases"] == len(whole["charts"]) >= 18
    names = set(whole["charts"])
    assert {"ttft_ecdf", "itl_tail", "running", "kernels", "batch", "roofline", "slowest"} <= names
    assert {"hits", "preemptions", "attainment"} <= names
    assert ("ttft_tpot" in names) == (name == "both")


def test_dragging_in_the_overview_redraws_every_panel_and_the_numbers(looks):
    run = looks["run"]
    whole, brushed, after = (run[key] for key in ("whole", "brushed", "after"))
    t0, t1 = brushed["t"]
    assert whole["t"][0] < t0 < t1 < whole["t"][1]
    assert set(run["panels"]) == set(whole["charts"]) - {"overview"}
    same = [name for name, scene in run["panels"].items() if run["brushed_panels"][name] == scene]
    assert same == []
    assert brushed["tiles"] != whole["tiles"] == after["tiles"]
    assert after["t"] == whole["t"]
    assert re.fullmatch(r"[\d.]+–[\d.]+ s", brushed["text"])


def test_the_window_counts_what_arrived_in_it(looks):
    brushed = looks["run"]["brushed"]
    shown = int(re.search(r"finished\s+(\d+)", brushed["tiles"])[1])
    t0, t1 = brushed["t"]
    assert shown == sum(t0 - 1e-9 <= i * 0.04 < t1 - 1e-9 for i in range(250))


def test_dark_is_dark_and_keeps_the_window(looks):
    whole, brushed, dark = (looks["run"][key] for key in ("whole", "brushed", "dark"))
    assert dark["ground"] != whole["ground"]
    assert dark["t"] == brushed["t"]
    assert dark["tiles"] == brushed["tiles"]
    assert dark["blank"] == []
    assert dark["canvases"] == whole["canvases"]


def test_runs_are_switched_off_and_focused(looks):
    found = looks["both"]
    assert found["shown"] == ["chunked"]
    assert found["one"] < found["all"]
    assert found["after"]["tiles"] != found["before"]["tiles"]


def test_charts_of_whole_runs_fade_while_a_window_is_selected(looks):
    found = looks["both"]
    assert found["whole"]["faint"] == 0
    assert found["brushed"]["faint"] == 2, "TTFT against TPOT, price against E2E"
