"""The progress bar: only on a terminal, only for long runs."""

from __future__ import annotations

import io
import sys
import time

import pytest
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


def said(monkeypatch, lasts_s: float, *, stream=None, shown: bool = True) -> str:
    stream = stream or Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.02)
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    with progress.working("reading t.jsonl", shown=shown):
        time.sleep(lasts_s)
    return stream.getvalue()


def test_long_work_says_what_it_is_and_clears_its_line(monkeypatch):
    text = said(monkeypatch, 0.2)
    assert "reading t.jsonl, 0 s" in text
    assert text.endswith("\r\x1b[K")


def test_work_that_counts_says_how_far_it_is(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr(progress, "SHOW_AFTER_S", 0.02)
    monkeypatch.setattr(progress, "_TICK_S", 0.01)
    done = 0
    with progress.working(lambda: f"{done} requests"):
        time.sleep(0.1)
        done = 7
        time.sleep(0.1)
    assert "\r0 requests, 0 s" in sys.stderr.getvalue()
    assert "\r7 requests, 0 s" in sys.stderr.getvalue()


def test_short_or_unseen_work_says_nothing(monkeypatch):
    assert said(monkeypatch, 0.0) == ""
    assert said(monkeypatch, 0.1, stream=io.StringIO()) == ""
    assert said(monkeypatch, 0.1, shown=False) == ""


def test_an_error_clears_the_line_and_passes(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(KeyError), progress.working("reading"):
        raise KeyError
