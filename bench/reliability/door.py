"""The two doors that are compared, each in front of a fleet of its own.

*dynamo*: two `dynamo.frontend --router-mode kv` with migration. Clients take the frontends in turn,
and take the other one when a connection is refused.
*wardrop*: `wardrop dynamo`, which starts and watches two frontends with the same flags.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from wardrop.dynamo.child_process import ChildProcess
from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.ports import free_port

DOORS = ("dynamo", "wardrop")
FRONTEND_FLAGS = ("--migration-limit", "3")
WARDROP_FLAGS = ("--frontends", "2", "--policy", "toll", "--queue", "--admin-port", "-1")
_READY_S = 120.0


@dataclass(frozen=True)
class Door:
    """A running door.

    Attributes:
        name: One of `DOORS`.
        urls: Addresses for clients.
        fleet: The fleet behind the door.
        router: Process of `wardrop dynamo`; None for the door *dynamo*.
    """

    name: str
    urls: tuple[str, ...]
    fleet: Fleet
    router: ChildProcess | None

    def frontend_pids(self) -> list[int]:
        """Process groups of the frontends."""
        if self.router is None:
            return [frontend.child.pid for frontend in self.fleet.frontends]
        return _frontends_under(self.router.pid)

    def pids(self) -> list[int]:
        """Every process that routes."""
        own = [self.router.pid] if self.router is not None else []
        return own + self.frontend_pids()

    def logs(self) -> str:
        """End of the router's log."""
        return self.router.tail() if self.router is not None else ""


@asynccontextmanager
async def opened(
    name: str, spec: FleetSpec, flags: tuple[str, ...] = (), store: Path | None = None
) -> AsyncGenerator[Door]:
    """Start a fleet and a door; stop both at the end.

    Args:
        name: One of `DOORS`.
        spec: The workers.
        flags: Further flags for `wardrop dynamo`.
        store: Store that Wardrop reads, where it is not the fleet's own.
    """
    fleet = Fleet(spec)
    try:
        await asyncio.to_thread(fleet.start)
        if name == "dynamo":
            for _ in range(2):
                await asyncio.to_thread(fleet.add_frontend, "kv", 0, FRONTEND_FLAGS)
            yield Door(name, tuple(f.url for f in fleet.frontends), fleet, None)
            return
        port = free_port()
        command = [sys.executable, "-m", "wardrop", "dynamo", "--http-port", str(port)]
        command += [*WARDROP_FLAGS, *flags]
        if store is not None:
            command += ["--store", str(store)]
        command += ["--", *FRONTEND_FLAGS]
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("DYN_", "WARDROP_"))
        }
        environment |= fleet.dynamo_environment
        router = ChildProcess("router", command, environment, fleet.home / "router.log")
        try:
            url = f"http://127.0.0.1:{port}"
            await _ready(router, url)
            yield Door(name, (url,), fleet, router)
        finally:
            await asyncio.to_thread(router.stop, 10.0)
    finally:
        await asyncio.to_thread(fleet.stop)


async def _ready(router: ChildProcess, url: str) -> None:
    deadline_s = time.monotonic() + _READY_S
    async with aiohttp.ClientSession() as session:
        while True:
            if router.exit_code is not None or time.monotonic() > deadline_s:
                raise RuntimeError(f"`wardrop dynamo` is not ready; its log ends:\n{router.tail()}")
            try:
                async with session.get(f"{url}/ready") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)


def _frontends_under(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            children = (task / "children").read_text().split()
        except OSError:
            continue
        for child in children:
            try:
                command = Path(f"/proc/{child}/cmdline").read_bytes()
            except OSError:
                continue
            if b"dynamo.frontend" in command:
                found.append(int(child))
    return sorted(found)


@dataclass(frozen=True)
class Resources:
    """Resources of a door's processes together.

    Attributes:
        threads: Threads.
        descriptors: Open file descriptors.
        resident_mb: Resident memory.
    """

    threads: int
    descriptors: int
    resident_mb: float


def resources(pids: list[int]) -> Resources:
    """Resources of processes now; a process that has ended counts as nothing."""
    threads = descriptors = kb = 0
    for pid in pids:
        try:
            status = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
            )
            threads += int(status["Threads"])
            kb += int(status.get("VmRSS", "0").split()[0])
            descriptors += len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            continue
    return Resources(threads, descriptors, kb / 1024)
