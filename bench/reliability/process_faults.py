"""SIGKILL and SIGSTOP of a worker and of a frontend, under streams."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import asdict
from typing import Any

from bench.reliability.clients import Clients, outcome
from bench.reliability.door import opened

from wardrop.dynamo.embedded import FleetSpec

CLIENTS = 12
STOPPED_S = 20.0
WATCHED_S = 20.0


def spec() -> FleetSpec:
    """Three workers at the engine's own pace, one process each."""
    return FleetSpec(workers=3, speedup_ratio=1.0)


async def kill_worker(door_name: str) -> dict[str, Any]:
    """SIGKILL one of three workers."""
    return await _fault(door_name, "worker", signal.SIGKILL)


async def stop_worker(door_name: str) -> dict[str, Any]:
    """SIGSTOP one of three workers for `STOPPED_S`, then SIGCONT."""
    return await _fault(door_name, "worker", signal.SIGSTOP)


async def kill_frontend(door_name: str) -> dict[str, Any]:
    """SIGKILL one of two frontends."""
    return await _fault(door_name, "frontend", signal.SIGKILL)


async def stop_frontend(door_name: str) -> dict[str, Any]:
    """SIGSTOP one of two frontends for `STOPPED_S`, then SIGCONT."""
    return await _fault(door_name, "frontend", signal.SIGSTOP)


async def _fault(door_name: str, victim: str, number: signal.Signals) -> dict[str, Any]:
    async with opened(door_name, spec()) as door:
        async with Clients(door.urls, CLIENTS) as clients:
            await clients.warm()
            pid = door.fleet.workers[1].child.pid if victim == "worker" else door.frontend_pids()[0]
            hit, fault_s = await clients.under_way(), time.monotonic()
            os.killpg(pid, number)
            await asyncio.sleep(STOPPED_S if number == signal.SIGSTOP else WATCHED_S)
            if number == signal.SIGSTOP:
                with contextlib.suppress(ProcessLookupError):  # the supervisor may replace it
                    os.killpg(pid, signal.SIGCONT)
                await asyncio.sleep(5.0)
        return asdict(outcome(hit, clients.seen, fault_s))
