"""Faults of what workers report: a restart under an old id, a silent feed, too many workers, ranks.

What Dynamo believes is read with its own `KvRouter.dump_events` by `wardrop.dynamo.block_reader`,
which is how its frontends recover blocks. What Wardrop believes is read from its metrics.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from dataclasses import asdict
from typing import Any

import aiohttp
from bench.reliability.clients import Clients, p99
from bench.reliability.door import Door, opened, resources
from bench.reliability.store_workers import StoreWorkers

from wardrop.dynamo.embedded import FleetSpec

INSTANCE = 0x5EED
WORKERS = 1_000
RANKS = 20_000
KNOWN_S = 120.0
SILENT_S = 30.0
_WATCHED_S = 10.0


def spec() -> FleetSpec:
    """One living worker, whose card the registered workers copy."""
    return FleetSpec(workers=1, speedup_ratio=20.0)


async def same_id_restart(door_name: str) -> dict[str, Any]:
    """A second life under the old id: event ids begin at 1 again, 5 blocks instead of 40."""
    async with opened(door_name, spec()) as door:
        workers = StoreWorkers(door.fleet.store, "scripted", "scripted")
        watch = await _Belief.begin(door, workers)
        try:
            await workers.stored(1, INSTANCE, 1, range(1, 41))
            first = await watch.blocks(lambda held: held == 40, 15)
            workers.end_publisher(1)
            await workers.publish(INSTANCE, 2)
            await asyncio.sleep(2.0)
            begin_s = time.monotonic()
            await workers.stored(2, INSTANCE, 1, range(101, 106))
            second = await watch.blocks(lambda held: held == 5, 15)
            return {
                "blocks_of_first_life": first,
                "blocks_after_restart": second,
                "true_blocks_after_restart": 5,
                "right_after_s": time.monotonic() - begin_s if second == 5 else None,
            }
        finally:
            await watch.end()
            await workers.close()


async def invented_ranks(door_name: str) -> dict[str, Any]:
    """20,000 ranks that no worker announced, each with one block, beside small requests."""
    async with opened(door_name, spec()) as door:
        workers = StoreWorkers(door.fleet.store)
        (instance,) = door.fleet.workers[0].instances
        await workers.publish(instance, 7)
        try:
            async with Clients(door.urls, 2, 64, 2, pause_s=0.02) as clients:
                await clients.warm()
                await asyncio.sleep(5.0)
                before, begin_s = resources(door.pids()), time.monotonic()
                for rank in range(1, RANKS + 1):
                    await workers.stored(7, instance, rank, [rank + 10_000], rank)
                    if rank % 200 == 0:
                        await asyncio.sleep(0.01)
                await asyncio.sleep(_WATCHED_S)
                after = resources(door.pids())
            quiet = [s.ended_s - s.sent_s for s in clients.seen if s.sent_s < begin_s and s.ended_s]
            times = [
                s.ended_s - s.sent_s for s in clients.seen if s.sent_s > begin_s + 3 and s.ended_s
            ]
            return {
                "small_p99_before_s": p99(quiet),
                "small_p99_after_s": p99(times),
                "small_failed": sum(
                    not s.whole for s in clients.seen if s.sent_s > begin_s and s.ended_s
                ),
                "resident_mb": [round(before.resident_mb), round(after.resident_mb)],
                "metrics_page_kb": await _page_kb(door),
            }
        finally:
            await workers.close()


async def many_workers(door_name: str) -> dict[str, Any]:
    """1,000 workers in the store, each with a living publisher of KV events."""
    async with opened(door_name, spec()) as door:
        before = resources(door.pids())
        workers = StoreWorkers(door.fleet.store, "scripted", "scripted")
        try:
            for number in range(WORKERS):
                workers.add(number + 1)
                await workers.publish(number + 1, 100_000 + number)
                if number % 20 == 0:
                    await asyncio.sleep(0)
            last, steady = resources(door.pids()), 0
            known = 0 if door.router is not None else WORKERS
            deadline_s = time.monotonic() + KNOWN_S
            while known < WORKERS and time.monotonic() < deadline_s:
                await asyncio.sleep(1.0)
                known = (await _page(door)).count("\nwardrop_worker_available{")
            deadline_s = time.monotonic() + 60
            while steady < 8 and time.monotonic() < deadline_s:
                await asyncio.sleep(1.0)
                now = resources(door.pids())
                steady = steady + 1 if now.descriptors == last.descriptors else 0
                last = now
            return {
                "threads": [before.threads, last.threads],
                "descriptors": [before.descriptors, last.descriptors],
                "resident_mb": [round(before.resident_mb), round(last.resident_mb)],
                "processes": len(door.pids()),
                "workers_known": known if door.router is not None else None,
                "router_alone": asdict(resources([door.router.pid])) if door.router else None,
            }
        finally:
            await workers.close()


async def silent_feed(door_name: str) -> dict[str, Any]:
    """A publisher whose connection is half open while its worker forgets all 40 blocks."""
    async with opened(door_name, spec()) as door:
        workers = StoreWorkers(door.fleet.store, "scripted", "scripted")
        watch = await _Belief.begin(door, workers, through_proxy=True)
        try:
            await workers.stored(1, INSTANCE, 1, range(1, 41))
            before = await watch.blocks(lambda held: held == 40, 15)
            workers.proxies[1].silence()
            begin_s = time.monotonic()
            await workers.cleared(1, INSTANCE, 2)
            after = await watch.blocks(lambda held: held == 0, SILENT_S)
            noticed_s = time.monotonic() - begin_s
            page = await _page(door) if door.router is not None else ""
            return {
                "blocks_before": before,
                "true_blocks_in_silence": 0,
                f"blocks_believed_after_{SILENT_S:g}_s": after,
                "noticed_after_s": noticed_s if after == 0 else None,
                "swallowed_bytes": workers.proxies[1].swallowed_bytes,
                "metrics": [line for line in page.splitlines() if f'"{INSTANCE}"' in line],
            }
        finally:
            await watch.end()
            await workers.close()


class _Belief:
    """What a door believes a scripted worker to hold."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._reader: asyncio.subprocess.Process | None = None

    @staticmethod
    async def begin(door: Door, workers: StoreWorkers, through_proxy: bool = False) -> _Belief:
        """Register the scripted worker with publisher 1, and wait until the door follows it."""
        workers.add(INSTANCE)
        await workers.publish(INSTANCE, 1, through_proxy)
        belief = _Belief(door)
        if door.router is None:
            script = os.path.join(os.path.dirname(__file__), "watch_blocks.py")
            environment = {**os.environ, **door.fleet.dynamo_environment, "DYN_LOG": "error"}
            belief._reader = await asyncio.create_subprocess_exec(
                *(sys.executable, script, "dynamo.scripted.generate", "16"),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=environment,
                limit=1 << 24,
            )
            await belief._next()
            await asyncio.sleep(2.0)
        else:
            deadline_s = time.monotonic() + 30
            while f'worker_id="{INSTANCE}"' not in await _page(door):
                if time.monotonic() > deadline_s:
                    raise RuntimeError(f"the router does not take the worker: {door.logs()}")
                await asyncio.sleep(0.1)
            await asyncio.sleep(2.0)
        return belief

    async def blocks(self, done: Any, timeout_s: float) -> int:
        """The number of blocks, as soon as `done` accepts it or the time is over."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            held = await self._next()
            if done(held) or time.monotonic() > deadline_s:
                return held
            await asyncio.sleep(0.05)

    async def end(self) -> None:
        """End the reader."""
        if self._reader is not None:
            self._reader.kill()
            await self._reader.wait()

    async def _next(self) -> int:
        if self._reader is not None:
            assert self._reader.stdout is not None
            line = await asyncio.wait_for(self._reader.stdout.readline(), 30)
            return int(json.loads(line).get(str(INSTANCE), 0))
        for line in (await _page(self._door)).splitlines():
            if line.startswith("wardrop_worker_held_blocks{") and f'"{INSTANCE}"' in line:
                return int(float(line.rpartition(" ")[2]))
        return 0


async def _page(door: Door) -> str:
    async with aiohttp.ClientSession() as session, session.get(f"{door.urls[0]}/metrics") as answer:
        return await answer.text()


async def _page_kb(door: Door) -> float:
    return round(len(await _page(door)) / 1024, 1)
