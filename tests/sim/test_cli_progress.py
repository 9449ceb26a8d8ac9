"""The progress bar: only on a terminal, only for long runs."""

from __future__ import annotations

import io
import sys

from stepline.sim.cli import progress
from stepline.sim.cluster.cluster import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def drawn(monkeypatch, *walls_s: float, stream=None, shown: bool = True) -> str:
    stream = stream or Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress.progress_bar("chunked", shown=shown) as on_progress:
        for wall_s in walls_s:
            if on_progress is not None:
                on_progress(Progress(done=500, total=1000, now_s=100.0 * wall_s, wall_s=wall_s))
    return stream.getvalue()


def test_a_short_run_draws_nothing(monkeypatch):
    assert drawn(monkeypatch, 0.5, 1.9) == ""


def test_a_long_run_shows_share_and_ratio(monkeypatch):
    text = drawn(monkeypatch, 1.0, 4.0)
    assert "500/1000" in text
    assert "100× real time" in text


def test_nothing_is_drawn_where_nobody_looks(monkeypatch):
    assert drawn(monkeypatch, 4.0, stream=io.StringIO()) == ""
    assert drawn(monkeypatch, 4.0, shown=False) == ""
