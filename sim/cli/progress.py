"""A progress bar on stderr: only on a terminal, only for runs longer than a couple of seconds."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
