"""What runs the simulations of a sweep: threads of this process, or an existing Ray cluster.

A simulation releases the GIL, so threads use all cores. Ray adds the cores of other machines; it
needs the extra `ray`, and the package `wardrop` of the same version on every machine.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from wardrop.replay.workload import ReplayError, Workload

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class Runner(Protocol):
    """Runs jobs, each on a workload.

    Attributes:
        width: jobs that run at the same time.
    """

    @property
    def width(self) -> int: ...  # noqa: D102  (described above)

    def submit(
        self, work: Callable[[Job, Workload], Answer], job: Job, workload: Workload
    ) -> Future[Answer]:
        """Start a job; the future gives its answer or its error."""
        ...


class ThreadRunner:
    """Threads of this process.

    Args:
        threads: jobs at once; all cores that this process may use by default.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._width = threads or len(os.sched_getaffinity(0))
        self._pool = ThreadPoolExecutor(self._width)

    @property
    def width(self) -> int:
        """Jobs that run at the same time."""
        return self._width

    def submit(
        self, work: Callable[[Job, Workload], Answer], job: Job, workload: Workload
    ) -> Future[Answer]:
        """Start a job; the future gives its answer or its error."""
        return self._pool.submit(work, job, workload)

    def close(self) -> None:
        """Wait for running jobs and end the threads."""
        self._pool.shutdown(cancel_futures=True)


class RayRunner:
    """Tasks of an existing Ray cluster, one core each.

    Each workload is sent to the cluster once. The connection ends with `close`.

    Args:
        address: address of the cluster as `ray.init` reads it, for instance `auto` or `HOST:PORT`.

    Raises:
        ReplayError: Ray is not installed, or no cluster answers at the address.
    """

    def __init__(self, address: str) -> None:
        try:
            self._ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise ReplayError(
                "--ray needs the package ray; install it with: pip install 'wardrop[ray]'"
            ) from error
        try:
            self._ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            cores = float(self._ray.cluster_resources().get("CPU", 0.0))
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise ReplayError(
                f"got no Ray cluster at {address!r} ({error}); expected the address of a running "
                "cluster: start one with `ray start --head`"
            ) from error
        if cores < 1:
            self.close()
            raise ReplayError(f"the Ray cluster at {address!r} has no CPU; expected at least one")
        self._cores = int(cores)
        self._sent: dict[int, tuple[Workload, Any]] = {}

    @property
    def width(self) -> int:
        """Cores of the cluster."""
        return self._cores

    def submit(
        self, work: Callable[[Job, Workload], Answer], job: Job, workload: Workload
    ) -> Future[Answer]:
        """Start a task; the future gives its answer or its error."""
        key = id(workload)
        if key not in self._sent:
            # The workload is kept, because an id names an object only while the object lives.
            self._sent[key] = (workload, self._ray.put(workload))
        task = self._ray.remote(num_cpus=1)(work).remote(job, self._sent[key][1])
        return task.future()

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()
