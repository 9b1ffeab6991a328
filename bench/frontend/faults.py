"""SIGKILL and SIGSTOP of one of three workers under 12 streams, for each frontend."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from dataclasses import asdict
from typing import Any

from bench.frontend.arms import KV, ROUND_ROBIN, WARDROP, Arm, Running, running
from bench.reliability.clients import Clients, outcome

from wardrop.dynamo.embedded import FleetSpec

CLIENTS = 12
WATCHED_S = 8.0
"""Time after the fault: longer than a request, and than the time after which silence counts."""
FAULTS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
FAULTY_ARMS = (ROUND_ROBIN, KV, WARDROP)
_SPEC = FleetSpec(workers=3, speedup_ratio=1.0)


def fault(arm: Arm, sent: signal.Signals) -> dict[str, Any]:
    """What a fault of one worker cost. A stopped worker continues after `WATCHED_S`."""
    with running(arm, _SPEC, "--migration-limit", "3") as running_arm:
        return asyncio.run(_fault(running_arm, sent))


async def _fault(running_arm: Running, sent: signal.Signals) -> dict[str, Any]:
    async with Clients((running_arm.stack.url,), CLIENTS) as clients:
        await clients.warm()
        pid = running_arm.fleet.workers[1].child.pid
        hit, fault_s = await clients.under_way(), time.monotonic()
        os.killpg(pid, sent)
        await asyncio.sleep(WATCHED_S)
        if sent == signal.SIGSTOP:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGCONT)
    return asdict(outcome(hit, clients.seen, fault_s))
