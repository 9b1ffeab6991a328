"""The fleet under test: mock workers, two frontends behind proxies, and the router."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.chaos.mirror import StoreMirror
from tests.chaos.phantom import INSTANCE, Phantom
from tests.chaos.recorder import Recording
from tests.chaos.severable import SeverableProxy
from tests.live.client import Metrics, get
from tests.waiting import DEADLINE_S

from wardrop.dynamo.child_process import ChildProcess
from wardrop.dynamo.embedded import Fleet, FleetSpec, Frontend, WorkerProcess
from wardrop.dynamo.ports import free_port

WORKERS = 3
FRONTENDS = 2
PREFIX_CACHE_BYTES = 1 << 19


@dataclass
class Sample:
    """Resources of the router's process at a moment."""

    at_s: float
    resident_kb: int
    descriptors: int
    threads: int


@dataclass
class Arena:
    """Everything that runs; an asynchronous context manager.

    Args:
        arguments: Further arguments of `wardrop dynamo`.
    """

    arguments: tuple[str, ...] = ()
    recording: Recording = field(default_factory=Recording)
    frontends: list[Frontend] = field(default_factory=list)
    workers: list[WorkerProcess] = field(default_factory=list)
    upstreams: list[SeverableProxy] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self.fleet = Fleet(FleetSpec(workers=WORKERS, speedup_ratio=2.0))
        try:
            await asyncio.to_thread(self.fleet.start)
            self.workers = list(self.fleet.workers)
            for _ in range(FRONTENDS):
                frontend = await asyncio.to_thread(self.fleet.add_frontend, "kv")
                self.frontends.append(frontend)
                proxy = SeverableProxy(("127.0.0.1", frontend.port), self.recording.tap)
                self.upstreams.append(await proxy.start())
            self.mirror = await StoreMirror(self.fleet.store, self.fleet.home / "mirror").start()
            self.phantom = Phantom(self.mirror)
            self.phantom.register()
            await self._start_router()
            self._keeping = asyncio.create_task(self.phantom.keep_alive())
            await self._known(str(INSTANCE))
            self._sampling = asyncio.create_task(self._sample())
        except BaseException:
            await asyncio.to_thread(self.fleet.stop)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._sampling.cancel()
        self._keeping.cancel()
        await asyncio.to_thread(self.router.stop, 10.0)
        for proxy in self.upstreams:
            await proxy.stop()
        self.phantom.close()
        await self.mirror.stop()
        await asyncio.to_thread(self.fleet.stop)

    async def _start_router(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "wardrop", "dynamo", "--http-port", str(port)]
        command += ["--policy", "toll", "--queue", "--admin-port", "-1", "--discovery", "file"]
        command += ["--store", str(self.mirror.root), *self.arguments]
        # A small prefix cache is full soon, so the slope of memory is that of the rest.
        command += ["--prompt-segment-cache-bytes", str(PREFIX_CACHE_BYTES)]
        for proxy in self.upstreams:
            command += ["--upstream", f"http://127.0.0.1:{proxy.port}"]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DYN_", "WARDROP_"))}
        environment = inherited | self.fleet.dynamo_environment
        environment["DYN_FILE_KV"] = str(self.mirror.root)
        self.router = ChildProcess("router", command, environment, self.fleet.home / "router.log")

        async def ready() -> bool:
            assert self.router.exit_code is None, self.router.tail()
            try:
                page = await self.metrics()
            except OSError:
                return False
            return sum(page.by("wardrop_worker_available", "worker_id").values()) >= WORKERS

        deadline_s = time.monotonic() + 60
        while not await ready():
            assert time.monotonic() < deadline_s, f"router not ready:\n{self.router.tail()}"
            await asyncio.sleep(0.1)

    async def metrics(self) -> Metrics:
        """The router's metrics page."""
        return Metrics((await asyncio.to_thread(get, self.url, "/metrics")).body.decode())

    async def settle(self, timeout_s: float = 60.0) -> dict[str, float]:
        """Wait until the router's books are at 0, or until the time is over; return the books."""
        books: dict[str, float] = {"metrics page": 1.0}
        deadline_s = time.monotonic() + timeout_s
        while any(books.values()) and time.monotonic() < deadline_s:
            try:
                page = await self.metrics()
            except OSError:
                await asyncio.sleep(0.2)
                continue
            books = {
                name: page.total(name)
                for name in (
                    "wardrop_requests_in_flight",
                    "wardrop_worker_active_requests",
                    "wardrop_queue_requests",
                )
            }
            await asyncio.sleep(0.1)
        return books

    def sample(self) -> Sample | None:
        """Resources of the router now; None where the process is gone."""
        base = Path(f"/proc/{self.router.pid}")
        try:
            status = dict(line.split(":", 1) for line in (base / "status").read_text().splitlines())
            return Sample(
                time.monotonic(),
                int(status["VmRSS"].split()[0]),
                len(list((base / "fd").iterdir())),
                int(status["Threads"]),
            )
        except (OSError, KeyError):
            return None

    async def _sample(self) -> None:
        while True:
            taken = self.sample()
            if taken is not None:
                self.samples.append(taken)
            await asyncio.sleep(0.5)

    async def replace_worker(self, at: int) -> None:
        """Start a worker in the place of a dead one, and wait until the router may choose it."""
        self.workers[at] = await asyncio.to_thread(self.fleet.add_worker)
        (instance,) = self.workers[at].instances
        await self._known(str(instance))

    async def _known(self, instance: str) -> None:
        """Wait until the router knows a worker."""
        deadline_s = time.monotonic() + DEADLINE_S
        while instance not in await self._known_workers():
            if self.router.exit_code is not None:
                raise OSError("the router has ended")
            assert time.monotonic() < deadline_s, f"the router does not know worker {instance}"
            await asyncio.sleep(0.1)

    async def knows(self, instance: int) -> bool:
        """Whether the router knows a worker now."""
        return str(instance) in await self._known_workers()

    async def _known_workers(self) -> dict[str, float]:
        try:
            return (await self.metrics()).by("wardrop_worker_available", "worker_id")
        except OSError:
            return {}

    async def replace_frontend(self, at: int) -> None:
        """Start a frontend in the place of a dead one: for the router it has the same address.

        The kernel may have given the dead one's port to another connection. So the new frontend has
        a port of its own behind the same proxy.
        """
        self.frontends[at] = await asyncio.to_thread(self.fleet.add_frontend, "kv")
        self.upstreams[at].target = ("127.0.0.1", self.frontends[at].port)
