"""Progress on stderr: only on a terminal, only of what takes longer than a couple of seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepline.sim.cluster.cluster import Progress

SHOW_AFTER_S = 2.0


class ProgressBar:
    """Called with the run's progress; draws once the run has lasted `SHOW_AFTER_S` of wall time.

    Shows the share of requests done, the time left and how much faster than real time the simulation runs.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, progress: Progress) -> None:
        """Show how far the run is."""
        if self._bar is None:
            if progress.wall_s < SHOW_AFTER_S:
                return
            self._open(progress.total)
        ratio = progress.now_s / progress.wall_s if progress.wall_s else 0.0
        self._bar.update(self._task, completed=progress.done, ratio=f"{ratio:,.0f}× real time")

    def close(self) -> None:
        """Remove the bar, if there is one."""
        if self._bar is not None:
            self._bar.stop()

    def _open(self, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[ratio]}"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._bar.add_task(self._label, total=total, ratio="")
        self._bar.start()


@contextmanager
def progress_bar(label: str, *, shown: bool) -> Iterator[Callable[[Progress], None] | None]:
    """A bar for one run; None where nobody would see it (`shown` False, or stderr is no terminal)."""
    if not shown or not sys.stderr.isatty():
        yield None
        return
    bar = ProgressBar(label)
    try:
        yield bar
    finally:
        bar.close()


@contextmanager
def working(what: str | Callable[[], str], *, shown: bool = True) -> Iterator[None]:
    """Say `what` goes on, and for how long, once it lasts longer than `SHOW_AFTER_S`: for work that cannot tell how
    much of it is left; a function says at each tick how far it is. Nothing where nobody would see it; nothing that
    stands on stdout is touched.
    """
    if not shown or not sys.stderr.isatty():
        yield
        return
    line = _Line((lambda: what) if isinstance(what, str) else what)
    try:
        yield
    finally:
        line.close()


class _Line:
    """A line with a clock on stderr that appears after `SHOW_AFTER_S`."""

    def __init__(self, what: Callable[[], str]) -> None:
        self._what = what
        self._begun_s = time.monotonic()
        self._done = Event()
        self._thread = Thread(target=self._tick, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Remove the line, if there is one."""
        self._done.set()
        self._thread.join()

    def _tick(self) -> None:
        if self._done.wait(SHOW_AFTER_S):
            return
        while not self._done.wait(_TICK_S):
            print(
                f"\r{self._what()}, {time.monotonic() - self._begun_s:.0f} s\x1b[K",
                end="",
                file=sys.stderr,
                flush=True,
            )
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


_TICK_S = 0.5
