"""The pages in a real browser, offline: no console message, every chart drawn, the brush moves every panel."""

from __future__ import annotations

import json
import re

import pytest
from stepline.sim.cli.main import main

from .browser import needs_browser, probe

pytestmark = needs_browser

DRAWN = """
const drawn = () => {
  const blank = [];
  for (const canvas of document.querySelectorAll(".chart canvas")) {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const colors = new Set();
    for (let i = 0; i < pixels.length; i += 4) {
      if (pixels[i + 3] > 128) colors.add(pixels[i] << 16 | pixels[i + 1] << 8 | pixels[i + 2]);
    }
    if (colors.size < 5) blank.push(canvas.closest(".chart").id);
  }
  const root = document.documentElement;
  return {
    blank, charts: [...stepline.views.keys()], canvases: document.querySelectorAll(".chart canvas").length,
    wide: root.scrollWidth > root.clientWidth, ground: getComputedStyle(document.body).backgroundColor,
  };
};
const look = () => ({
  tiles: document.getElementById("tiles").innerText,
  text: document.getElementById("window").textContent,
  t: [stepline.state.t0, stepline.state.t1],
});
"""

RUN = f"""
{DRAWN}
const whole = drawn(), before = look();
await stepline.select(2, 5); await frames();
const during = look();
const views = [...stepline.views].filter(([name]) => name !== "overview");
const signals = views.map(([name, view]) => [name, view.signal("t0"), view.signal("t1")]);
document.getElementById("theme").click();
await new Promise((r) => setTimeout(r, 2000));
const dark = {{ ...drawn(), ...look() }};
document.getElementById("reset").click(); await frames();
return {{ whole, before, during, dark, after: look(), signals }};
"""

BOTH = f"""
{DRAWN}
const whole = drawn(), before = look();
const scene = (name) => stepline.views.get(name).scenegraph().toJSON();
const lines = (name) => new Set(scene(name).match(/"stroke":"#[0-9a-f]{{6}}"/g)).size;
const all = lines("ttft_ecdf");
document.querySelector("#runs input").click(); await frames();
const one = lines("ttft_ecdf");
const focus = document.getElementById("focus");
focus.value = [...focus.options].map((o) => o.value).find((v) => v !== stepline.state.focus);
focus.dispatchEvent(new Event("change")); await frames();
return {{ whole, before, all, one, shown: stepline.state.shown, after: look() }};
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
    trace = ["--trace", str(here / "t.jsonl"), "--num-gpu-blocks-override", "300", "--quiet"]
    assert main([*trace, "--report", "--record-steps", "--out", str(here / "run")]) == 0
    assert main([*trace, "--policy", "continuous,chunked", "--out", str(here / "both")]) == 0
    return {
        "run": probe(here / "run" / "report.html", RUN),
        "both": probe(here / "both" / "comparison.html", BOTH, width=500),
    }


@pytest.mark.parametrize("name", ["run", "both"])
def test_every_chart_is_drawn_and_the_console_is_silent(looks, name):
    found, console = looks[name]
    assert console == []
    assert "error" not in found, found
    whole = found["whole"]
    assert whole["blank"] == []
    assert not whole["wide"], "the page is wider than the window"
    assert whole["canvases"] == len(whole["charts"]) >= 18
    names = set(whole["charts"])
    assert {"ttft_ecdf", "itl_tail", "running", "kernels", "batch", "roofline", "slowest"} <= names
    assert {"hits", "preemptions"} <= names


def test_the_brush_moves_every_panel_and_the_numbers(looks):
    found, _ = looks["run"]
    before, during, after = (found[key] for key in ("before", "during", "after"))
    assert before["t"][0] <= 0 < 10 < before["t"][1]
    assert during["t"] == pytest.approx([2, 5], abs=0.2)
    assert {(t0, t1) for _, t0, t1 in found["signals"]} == {tuple(during["t"])}
    assert during["tiles"] != before["tiles"] == after["tiles"]
    assert after["t"] == before["t"]
    assert re.search(r"2(\.\d+)?–[45](\.\d+)? s", during["text"])


def test_the_window_counts_what_arrived_in_it(looks):
    during = looks["run"][0]["during"]
    shown = int(re.search(r"requests finished\s+(\d+)", during["tiles"])[1])
    t0, t1 = during["t"]
    assert shown == sum(t0 - 1e-9 <= i * 0.04 < t1 - 1e-9 for i in range(250))


def test_dark_is_dark_and_keeps_the_window(looks):
    found, _ = looks["run"]
    assert found["dark"]["ground"] != found["whole"]["ground"]
    assert found["dark"]["t"] == found["during"]["t"]
    assert found["dark"]["tiles"] == found["during"]["tiles"]
    assert found["dark"]["blank"] == []
    assert found["dark"]["canvases"] == found["whole"]["canvases"]


def test_runs_are_switched_off_and_focused(looks):
    found, _ = looks["both"]
    assert found["shown"] == ["chunked"]
    assert found["one"] < found["all"]
    assert found["after"]["tiles"] != found["before"]["tiles"]
