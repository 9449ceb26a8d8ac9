"""The executor on Dask distributed (optional extra `dask`): its scheduler moves tasks when workers come and go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from stepline.traces.errors import ConfigError

from .executors import ATTEMPTS, Function, Outcome, Task, attempt, cpus

CONNECT_TIMEOUT = "10s"


class DaskExecutor(AbstractContextManager["DaskExecutor"]):
    """Tasks on the cluster of a running scheduler (`address`), or on a local one of `jobs` worker processes."""

    def __init__(self, address: str | None, jobs: int | None = None) -> None:
        try:
            import distributed
        except ImportError:
            raise ConfigError(
                "--executor dask: needs Dask distributed, install it with pip install 'stepline[dask]'"
            ) from None
        self._lib = distributed
        self._address = address
        self._cluster: Any = None
        self.losses = 0
        self._seen: set[str] = set()
        try:
            self._client = self._connect(distributed, jobs)
        except (OSError, ValueError, TimeoutError) as error:
            raise ConfigError(f"--scheduler: {address!r} does not answer: {error}") from None

    def _connect(self, distributed: Any, jobs: int | None) -> Any:
        if self._address is not None:
            return distributed.Client(self._address, timeout=CONNECT_TIMEOUT)
        self._cluster = distributed.LocalCluster(
            n_workers=jobs or cpus(), threads_per_worker=1, processes=True, dashboard_address=None
        )
        return distributed.Client(self._cluster)

    @property
    def workers(self) -> str:
        """How many, and where."""
        info = self._client.scheduler_info(n_workers=-1)
        return f"{len(info['workers'])} Dask workers at {info['address']}"

    def _count_losses(self) -> None:
        now = set(self._client.scheduler_info(n_workers=-1)["workers"])
        self.losses += len(self._seen - now)
        self._seen = now

    def run(self, function: Function, tasks: Iterable[Task]) -> Iterator[Outcome]:
        """In order of completion. Dask moves the tasks of a lost worker; after `ATTEMPTS` losses it gives up on one."""
        self._count_losses()
        waiting: dict[str, Task] = {}
        futures = []
        for key, argument in tasks:
            future = self._submit(function, key, argument)
            waiting[future.key] = (key, argument)
            futures.append(future)
        completed: Any = self._lib.as_completed
        for future in completed(futures):
            self._count_losses()
            key, _ = waiting.pop(future.key)
            error = future.exception() if future.status != "cancelled" else None
            if future.status == "finished":
                yield future.result()
            elif isinstance(error, self._lib.scheduler.KilledWorker):
                yield Outcome(
                    key,
                    error=f"its worker died {ATTEMPTS} times (killed, or out of memory?)",
                    deaths=ATTEMPTS,
                )
            else:
                yield Outcome(key, error=f"lost by the cluster: {error or future.status}")
            future.release()

    def _submit(self, function: Function, key: str, argument: Any) -> Any:
        return self._client.submit(attempt, function, key, argument, pure=False)

    def __exit__(self, *_: object) -> None:
        self._client.close()
        if self._cluster is not None:
            self._cluster.close()
