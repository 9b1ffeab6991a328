"""A real Dynamo on this machine without GPUs: frontends and mock workers, as a context manager.

    enter_or_reexec()                                   # private network; see `namespace`
    with Fleet(FleetSpec(workers=4)) as fleet:
        frontend = fleet.add_frontend("kv")
        requests.post(f"{frontend.url}/v1/completions", …)
        fleet.workers[0].child.kill()

Discovery uses files, requests use TCP, and events use ZMQ: no etcd and no NATS runs. Every process
is stopped and every file removed at the end, also after an exception, Ctrl-C or SIGTERM. The kernel
ends the processes when this process is killed. After an exception the logs stay, and standard error
names their folder.
"""

from __future__ import annotations

import atexit
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from wardrop.dynamo.child_process import ChildProcess, signals_deferred, stop_all
from wardrop.dynamo.discovery.fleet_view import Role
from wardrop.dynamo.fleet_commands import (
    dynamo_environment,
    frontend_command,
    process_environment,
    worker_command,
)
from wardrop.dynamo.fleet_readiness import frontend_serves, instances_of_process, live_instances
from wardrop.dynamo.fleet_spec import FleetSpec, split_fleet
from wardrop.dynamo.install import dynamo_version
from wardrop.dynamo.model_folder import model_folder
from wardrop.dynamo.ports import free_port

__all__ = [
    "Fleet",
    "FleetError",
    "FleetSpec",
    "Frontend",
    "WorkerProcess",
    "free_port",
    "split_fleet",
]

_STOP_TIMEOUT_S = 3.0
_POLL_S = 0.05


class FleetError(RuntimeError):
    """The embedded Dynamo did not start, or a process ended; the text ends with its log."""


@dataclass
class Frontend:
    """A running `dynamo.frontend`.

    Attributes:
        mode: `--router-mode`.
        port: Port on the loopback.
        child: The process.
    """

    mode: str
    port: int
    child: ChildProcess

    @property
    def url(self) -> str:
        """Base address, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"


@dataclass
class WorkerProcess:
    """A process of mock workers.

    Attributes:
        role: Role of the workers.
        count: Number of workers in the process.
        child: The process.
        instances: Dynamo's ids of the workers; empty until the workers have registered.
    """

    role: Role
    count: int
    child: ChildProcess
    instances: list[int] = field(default_factory=list[int])


class Fleet:
    """An embedded Dynamo: starts on `__enter__` or `start`, stops on `__exit__` or `stop`.

    Args:
        spec: The workers to start.

    Raises:
        DynamoMissingError: The interpreter of the specification has no Dynamo.
    """

    def __init__(self, spec: FleetSpec) -> None:
        self.spec = spec
        self.frontends: list[Frontend] = []
        self.workers: list[WorkerProcess] = []
        self.version = dynamo_version(spec.python)
        self.model = spec.model or model_folder(spec.python)
        self.home = Path(tempfile.mkdtemp(prefix="wardrop-fleet-"))
        self.store = self.home / "store"
        self.store.mkdir()
        self.scratch = self.home / "tmp"
        self.scratch.mkdir()
        self._stopped = False
        self._previous_term: object = None

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException as error:
            # An interrupt is no failure: it leaves no logs to look at.
            self.stop(keep_logs=isinstance(error, Exception))
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(keep_logs=kind is not None and issubclass(kind, Exception))

    def start(self) -> Self:
        """Start the workers and wait until all of them have registered.

        Raises:
            FleetError: A process ended, or a worker did not register within `ready_timeout_s`.
        """
        atexit.register(self.stop)
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        ):
            self._previous_term = signal.signal(signal.SIGTERM, _exit_on_term)
        roles: tuple[tuple[Role, int], ...] = (
            ("aggregated", self.spec.workers),
            ("prefill", self.spec.prefill),
            ("decode", self.spec.decode),
        )
        for role, count in roles:
            if count and self.spec.process_per_worker:
                for _ in range(count):
                    self._launch_worker(role, 1)
            elif count:
                self._launch_worker(role, count)
        self._await_workers([worker.child for worker in self.workers])
        return self

    def stop(self, keep_logs: bool = False) -> None:
        """Stop every process and remove the folder. A second call does nothing.

        Args:
            keep_logs: Keep the logs and print the name of their folder.
        """
        if self._stopped:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        if self._previous_term is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop_all(
            [frontend.child for frontend in self.frontends]
            + [worker.child for worker in self.workers],
            timeout_s=_STOP_TIMEOUT_S,
        )
        if keep_logs:
            shutil.rmtree(self.store, ignore_errors=True)
            shutil.rmtree(self.scratch, ignore_errors=True)
            print(f"wardrop: the logs of the embedded Dynamo are in {self.home}", file=sys.stderr)
        else:
            shutil.rmtree(self.home, ignore_errors=True)

    @property
    def environment(self) -> dict[str, str]:
        """All variables of a process of the fleet."""
        return process_environment(self.spec, self.dynamo_environment, self.scratch)

    @property
    def dynamo_environment(self) -> dict[str, str]:
        """Variables with which Dynamo, or a router, finds the fleet."""
        return dynamo_environment(self.store)

    def add_frontend(
        self,
        mode: str = "kv",
        port: int = 0,
        arguments: tuple[str, ...] = (),
        module: str = "dynamo.frontend",
    ) -> Frontend:
        """Start a frontend and wait until it lists every worker.

        Args:
            mode: `--router-mode` (kv, round-robin, direct, …).
            port: Port on the loopback; 0 takes a free one.
            arguments: Further flags.
            module: Module to run: `dynamo.frontend`, or one with the same flags.

        Raises:
            FleetError: The frontend ended, or did not list the workers within `ready_timeout_s`.
        """
        port = port or free_port()
        # Another module than Dynamo's own belongs to this interpreter's packages.
        python = self.spec.python if module == "dynamo.frontend" else sys.executable
        command = frontend_command(python, mode, port, arguments, module)
        name = f"frontend-{len(self.frontends)}-{mode}"
        with signals_deferred():
            child = ChildProcess(name, command, self.environment, self.home / f"{name}.log")
            frontend = Frontend(mode, port, child)
            self.frontends.append(frontend)
        self._await(
            lambda: self._serves(frontend),
            f"frontend at {frontend.url} to serve {self.spec.model_name!r}",
            [child],
        )
        return frontend

    def add_worker(self, role: Role = "aggregated", wait: bool = True) -> WorkerProcess:
        """Start one more mock worker in a process of its own.

        Args:
            role: Role of the worker.
            wait: Return when the worker has registered; otherwise at once.
        """
        worker = self._launch_worker(role, 1)
        if wait:
            self._await_workers([worker.child])
        return worker

    def live_instances(self) -> dict[int, str]:
        """Component of each worker instance that the store lists now, by instance id."""
        return live_instances(self.store)

    def _launch_worker(self, role: Role, count: int) -> WorkerProcess:
        command = worker_command(self.spec, self.model, role, count)
        name = f"worker-{len(self.workers)}-{role}"
        # System port 0 takes a free port. Without a system port, an offline frontend looks for the
        # files of the model card on the hub.
        environment = self.environment | {"DYN_SYSTEM_PORT": "0"}
        with signals_deferred():
            child = ChildProcess(name, command, environment, self.home / f"{name}.log")
            worker = WorkerProcess(role, count, child)
            self.workers.append(worker)
        return worker

    def _await_workers(self, starting: Sequence[ChildProcess]) -> None:
        self._await(self._all_registered, "every mock worker to register", starting)

    def _all_registered(self) -> bool:
        for worker in self.workers:
            if worker.child.exit_code is None and len(worker.instances) < worker.count:
                worker.instances = instances_of_process(self.store, worker.child.pid)
        return all(len(w.instances) == w.count for w in self.workers if w.child.exit_code is None)

    def _serves(self, frontend: Frontend) -> bool:
        alive = [i for w in self.workers if w.child.exit_code is None for i in w.instances]
        return frontend_serves(frontend.url, self.spec.model_name, alive)

    def _await(self, done: Callable[[], bool], what: str, starting: Sequence[ChildProcess]) -> None:
        """Wait until `done` is true. A process that ends meanwhile is an error.

        A process in `starting` is an error even when it ended before this call. `done` looks at
        living processes only: a fleet without a living process would count as ready.
        """
        deadline_s = time.monotonic() + self.spec.ready_timeout_s
        parts = [frontend.child for frontend in self.frontends] + [
            worker.child for worker in self.workers
        ]
        watched = [child for child in parts if child in starting or child.exit_code is None]
        while True:
            ready = done()
            # Checked after `done`, because a process may end between the two.
            for child in watched:
                if child.exit_code is not None:
                    raise FleetError(
                        f"{child.name} ended with code {child.exit_code}; its log ends:\n"
                        f"{child.tail()}"
                    )
            if ready:
                return
            if time.monotonic() > deadline_s:
                tails = "\n".join(f"{child.name}: {child.tail()}" for child in watched)
                raise FleetError(
                    f"waited {self.spec.ready_timeout_s:g} s for {what}; logs end:\n{tails}"
                )
            time.sleep(_POLL_S)


def _exit_on_term(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
