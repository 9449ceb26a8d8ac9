"""Runs pure functions over many inputs: in this process, in local processes, or on a Dask cluster.

An executor takes tasks (key, argument) and yields `Outcome`s as they come. A task that raises yields its error; a worker
that dies takes nothing with it: its tasks are run again, and fail only after `ATTEMPTS` deaths.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from stepline.traces.errors import ConfigError, SteplineError, nearest

ATTEMPTS = 3
"""Times that a task is tried when the worker under it dies."""

EXECUTORS = ("local", "dask")

Task = tuple[str, Any]
Function = Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a task: its `value`, or its `error` as one line. `deaths`: workers lost under it."""

    key: str
    value: Any = None
    error: str | None = None
    deaths: int = 0


class Executor(AbstractContextManager["Executor"], Protocol):
    """Runs a function over tasks; see the module."""

    def run(self, function: Function, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """Outcomes in order of completion. `function` and its arguments travel by pickle."""
        ...

    @property
    def workers(self) -> str:
        """Who works, for people."""
        ...

    @property
    def losses(self) -> int:
        """Workers that have died so far."""
        ...


def open_executor(kind: str = "local", *, jobs: int | None = None, scheduler: str | None = None) -> Executor:
    """An executor by name; `jobs`: local processes (default: as many as CPUs), `scheduler`: address of a Dask one.

    Raises:
        ConfigError: an unknown name, a scheduler without Dask, Dask not installed or not reachable.
    """
    if kind not in EXECUTORS:
        raise ConfigError(f"--executor: unknown name {kind!r}{nearest(kind, EXECUTORS)}")
    if jobs is not None and jobs < 1:
        raise ConfigError(f"--jobs: got {jobs}, expected an integer >= 1")
    if kind == "dask":
        from .dask_executor import DaskExecutor

        return DaskExecutor(scheduler, jobs)
    if scheduler is not None:
        raise ConfigError(f"--scheduler: got {scheduler!r}, needs --executor dask")
    jobs = jobs or cpus()
    return InProcess() if jobs == 1 else Processes(jobs)


def cpus() -> int:
    """CPUs that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


def one_line(error: BaseException) -> str:
    """An error as one line: bare for those that stepline words, else with its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, SteplineError) else f"{type(error).__name__}: {text}"


def attempt(function: Function, key: str, argument: Any, deaths: int = 0) -> Outcome:
    """Run one task; its error, whatever it is, becomes part of the outcome."""
    try:
        return Outcome(key, function(argument), deaths=deaths)
    except Exception as error:  # noqa: BLE001 - a failing point is reported, it does not sink the rest
        return Outcome(key, error=one_line(error), deaths=deaths)


class InProcess(AbstractContextManager["InProcess"]):
    """One after the other, here."""

    workers = "this process"
    losses = 0

    def run(self, function: Function, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """In order."""
        return (attempt(function, key, argument) for key, argument in tasks)

    def __exit__(self, *_: object) -> None:
        pass


def _die_with_parent() -> None:
    """A worker whose parent was killed would wait for tasks for ever: it leaves when the parent does."""
    parent = multiprocessing.parent_process()
    if parent is not None:

        def watch() -> None:
            multiprocessing.connection.wait([parent.sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()


class Processes(AbstractContextManager["Processes"]):
    """A pool of processes on this machine."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.losses = 0
        self._pool: ProcessPoolExecutor | None = None

    @property
    def workers(self) -> str:
        """How many."""
        return f"{self.jobs} processes"

    def run(self, function: Function, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """In order of completion; after a death those that were under way start again, one at a time.

        Which of them killed the worker is not known, so only a task that was alone when it died is blamed.
        """
        suspects: dict[str, tuple[Any, int]] = {}
        yield from self._spread(function, list(tasks), suspects)
        for key, (argument, deaths) in suspects.items():
            yield self._alone(function, key, argument, deaths)

    def _spread(
        self, function: Function, tasks: list[Task], suspects: dict[str, tuple[Any, int]]
    ) -> Iterator[Outcome]:
        """Everything at once, a few ahead; what was under way when the pool broke is left in `suspects`."""
        queue = list(reversed(tasks))
        running: dict[Future[Outcome], Task] = {}
        while queue or running:
            while queue and len(running) < self.jobs:
                task = queue.pop()
                running[self._submit(function, task)] = task
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            broken = False
            for future in done:
                key, argument = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects[key] = (argument, 1)
                    broken = True
                else:
                    yield future.result()
            if broken:
                for future, (key, argument) in list(running.items()):
                    wait([future])
                    if future.exception() is None:
                        yield future.result()
                    else:
                        suspects[key] = (argument, 1)
                running.clear()
                self._lost()

    def _alone(self, function: Function, key: str, argument: Any, deaths: int) -> Outcome:
        while deaths < ATTEMPTS:
            future = self._submit(function, (key, argument), deaths)
            try:
                return future.result()
            except BrokenProcessPool:
                deaths += 1
                self._lost()
        return Outcome(
            key, error=f"its worker died {deaths} times (killed, or out of memory?)", deaths=deaths
        )

    def _submit(self, function: Function, task: Task, deaths: int = 0) -> Future[Outcome]:
        for _ in range(ATTEMPTS):
            if self._pool is None:
                # spawned, not forked: a fork would copy the threads' locks of numeric libraries
                context = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(self.jobs, mp_context=context, initializer=_die_with_parent)
            try:
                return self._pool.submit(attempt, function, task[0], task[1], deaths)
            except BrokenProcessPool:
                self._drop()
        raise ConfigError(f"--jobs: {self.jobs} processes: workers die before they take a task")

    def _lost(self) -> None:
        self.losses += 1
        self._drop()

    def _drop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def __exit__(self, kind: object, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)
            self._pool = None
