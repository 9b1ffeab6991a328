"""A real Dynamo on this machine without GPUs: frontends and mock workers, as a context manager.

    enter_or_reexec()                                   # private network; see `namespace`
    with Fleet(FleetSpec(workers=4)) as fleet:
        front = fleet.add_frontend("kv")
        requests.post(f"{front.url}/v1/completions", …)
        fleet.workers[0].child.kill()

Discovery by file, requests over TCP, events over ZMQ: no etcd, no NATS. Everything is stopped and
removed at the end, also after an exception, Ctrl-C or SIGTERM, and by the kernel when this process
is killed. After an exception the logs are kept and their place is named.
"""

from __future__ import annotations

import atexit
import http.client
import json
import os
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
from urllib.request import urlopen

from wardrop.dynamo.child_process import ChildProcess, stop_all
from wardrop.dynamo.discovery import file_store
from wardrop.dynamo.discovery.fleet_view import Role
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


class FleetError(RuntimeError):
    """The embedded Dynamo did not come up, or a part ended; the text ends with its log."""


@dataclass
class Frontend:
    """A running `dynamo.frontend`."""

    mode: str
    port: int
    child: ChildProcess

    @property
    def url(self) -> str:
        """Base address, without a trailing slash."""
        return f"http://127.0.0.1:{self.port}"


@dataclass
class WorkerProcess:
    """A process of mock workers; `instances` are Dynamo's ids, known once registered."""

    role: Role
    count: int
    child: ChildProcess
    instances: list[int] = field(default_factory=list[int])


class Fleet:
    """Starts on `__enter__` (or `start`), stops on `__exit__` (or `stop`)."""

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

    # Life -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop(keep_logs=True)
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop(keep_logs=kind is not None and issubclass(kind, Exception))

    def start(self) -> Self:
        """Start the workers and wait until every one has registered with its event channel."""
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
        """Stop every part and remove the folder. May be called again."""
        if self._stopped:
            return
        self._stopped = True
        atexit.unregister(self.stop)
        if self._previous_term is not None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop_all(
            [front.child for front in self.frontends] + [worker.child for worker in self.workers],
            timeout_s=3.0,
        )
        if keep_logs:
            shutil.rmtree(self.store, ignore_errors=True)
            shutil.rmtree(self.scratch, ignore_errors=True)
            print(f"wardrop: the logs of the embedded Dynamo are in {self.home}", file=sys.stderr)
        else:
            shutil.rmtree(self.home, ignore_errors=True)

    # Parts ----------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """Environment of every part: ours without its `DYN_*`, plus `dynamo_environment`."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("DYN_")
        }
        # Mock workers leave files with their engine arguments behind: these go with our folder.
        private = {"TMPDIR": str(self.scratch)}
        return inherited | private | self.dynamo_environment | dict(self.spec.environment)

    @property
    def dynamo_environment(self) -> dict[str, str]:
        """What makes Dynamo, and a router, find this fleet; everything on the loopback."""
        return {
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "DYN_DISCOVERY_BACKEND": "file",
            "DYN_FILE_KV": str(self.store),
            "DYN_REQUEST_PLANE": "tcp",
            "DYN_EVENT_PLANE": "zmq",
            "DYN_TCP_RPC_HOST": "127.0.0.1",
            "DYN_SYSTEM_HOST": "127.0.0.1",
            "DYN_HTTP_HOST": "127.0.0.1",
            "DYN_TCP_RESPONSE_STREAM_HOST": "lo",  # an interface name, not an address
            "DYN_LOG": os.environ.get("DYN_LOG", "warn"),
            "DYN_SDK_DISABLE_ANSI_LOGGING": "1",
        }

    def add_frontend(
        self, mode: str = "kv", port: int = 0, arguments: tuple[str, ...] = ()
    ) -> Frontend:
        """Start a `dynamo.frontend` in a router mode; wait until it sees every worker.

        Args:
            mode: `--router-mode` (kv, round-robin, direct, …).
            port: loopback port; 0 picks a free one.
            arguments: further flags.

        Raises:
            FleetError: it ended, or did not see the workers within `ready_timeout_s`.
        """
        port = port or free_port()
        command = [
            self.spec.python,
            "-m",
            "dynamo.frontend",
            "--http-host",
            "127.0.0.1",
            "--http-port",
            str(port),
        ]
        command += ["--router-mode", mode, *arguments]
        name = f"frontend-{len(self.frontends)}-{mode}"
        child = ChildProcess(name, command, self.environment, self.home / f"{name}.log")
        front = Frontend(mode, port, child)
        self.frontends.append(front)
        self._await(
            lambda: self._serves(front),
            f"frontend at {front.url} to serve {self.spec.model_name!r}",
            [child],
        )
        return front

    def stop_frontend(self, front: Frontend) -> None:
        """Stop one frontend and forget it."""
        front.child.stop()
        self.frontends.remove(front)

    def add_worker(self, role: Role = "aggregated", wait: bool = True) -> WorkerProcess:
        """Start one more mock worker in its own process; with `wait`, until it registered."""
        worker = self._launch_worker(role, 1)
        if wait:
            self._await_workers([worker.child])
        return worker

    def live_instances(self) -> dict[int, str]:
        """Worker instances that the discovery store lists now, with their component."""
        found: dict[int, str] = {}
        for _, entry in file_store.entries(self.store, "instances"):
            if entry.get("endpoint") == "generate":
                found[int(str(entry["instance_id"]))] = str(entry["component"])
        return found

    # Inside ---------------------------------------------------------------------------------------

    def _launch_worker(self, role: Role, count: int) -> WorkerProcess:
        spec = self.spec
        command = [
            spec.python,
            "-m",
            "dynamo.mocker",
            "--model-path",
            str(self.model),
            "--model-name",
            spec.model_name,
        ]
        command += ["--num-workers", str(count), "--block-size", str(spec.block_size)]
        command += [
            "--num-gpu-blocks-override",
            str(spec.blocks),
            "--max-model-len",
            str(spec.max_model_len),
        ]
        command += ["--speedup-ratio", str(spec.speedup_ratio)]
        if spec.timing_table is not None:
            command += ["--planner-profile-data", str(spec.timing_table.resolve())]
        if role != "aggregated":
            command += ["--disaggregation-mode", role]
        if role == "prefill":
            command += ["--bootstrap-ports", ",".join(str(free_port()) for _ in range(count))]
        command += spec.mocker_arguments
        name = f"worker-{len(self.workers)}-{role}"
        # System port 0: a free one. Without it an offline frontend looks for the model card's files
        # on the hub.
        child = ChildProcess(
            name, command, self.environment | {"DYN_SYSTEM_PORT": "0"}, self.home / f"{name}.log"
        )
        worker = WorkerProcess(role, count, child)
        self.workers.append(worker)
        return worker

    def _await_workers(self, starting: Sequence[ChildProcess]) -> None:
        self._await(self._all_registered, "every mock worker to register", starting)

    def _all_registered(self) -> bool:
        for worker in self.workers:
            if worker.child.exit_code is None and len(worker.instances) < worker.count:
                worker.instances = self._instances_of(worker)
        return all(len(w.instances) == w.count for w in self.workers if w.child.exit_code is None)

    def _instances_of(self, worker: WorkerProcess) -> list[int]:
        """Instances whose request-plane address is a listening socket of that process."""
        ports = _listening_ports(worker.child.pid)
        found: list[int] = []
        cards = {key.rpartition("/")[2] for key, _ in file_store.entries(self.store, "mdc")}
        for key, entry in file_store.entries(self.store, "instances"):
            transport = entry.get("transport")
            if entry.get("endpoint") != "generate" or not isinstance(transport, dict):
                continue
            address = str(transport.get("tcp", "")).partition("/")[0]  # pyright: ignore
            if address.rpartition(":")[2] in ports and key.rpartition("/")[2] in cards:
                found.append(int(str(entry["instance_id"])))
        return found

    def _serves(self, front: Frontend) -> bool:
        try:
            with urlopen(f"{front.url}/v1/models", timeout=5) as answer:
                models = {model["id"] for model in json.load(answer)["data"]}
            with urlopen(f"{front.url}/health", timeout=5) as answer:
                listed = {
                    i["instance_id"]
                    for i in json.load(answer)["instances"]
                    if i["endpoint"] == "generate"
                }
        except (OSError, ValueError, http.client.HTTPException):
            return False
        alive = {i for w in self.workers if w.child.exit_code is None for i in w.instances}
        return (self.spec.model_name in models or not alive) and alive <= listed

    def _await(self, done: Callable[[], bool], what: str, starting: Sequence[ChildProcess]) -> None:
        """Wait for `done`; a part that ends meanwhile is an error.

        The parts in `starting` count even when they had ended before: `done` looks at living parts
        only, so a fleet whose parts are all dead would pass for ready.
        """
        deadline_s = time.monotonic() + self.spec.ready_timeout_s
        parts = [front.child for front in self.frontends] + [
            worker.child for worker in self.workers
        ]
        watched = [child for child in parts if child in starting or child.exit_code is None]
        while True:
            ready = done()
            # After `done`, not before: a part may end between the two.
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
            time.sleep(0.05)


def _listening_ports(pid: int) -> set[str]:
    """Decimal TCP ports that a process listens on, from /proc."""
    inodes: set[str] = set()
    try:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                target = os.readlink(entry)
            except OSError:
                continue
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
        rows = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return set()
    listening = (row.split() for row in rows)
    return {
        str(int(f[1].rpartition(":")[2], 16)) for f in listening if f[3] == "0A" and f[9] in inodes
    }


def _exit_on_term(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
