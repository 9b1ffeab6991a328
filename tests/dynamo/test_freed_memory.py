"""Freed memory goes back to the operating system, and models that left leave nothing behind."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.dynamo.given import Given
from tests.gateway.test_prompt_files import write_model
from tests.waiting import wait_until_async

from wardrop._core import Gateway
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.store_reader import read_fleet_view
from wardrop.dynamo.freed_memory import FreedMemory, resident_bytes
from wardrop.dynamo.gateway_sync import Actions, GatewaySync

ROOT = Path(__file__).parents[2]
MEBIBYTE = 1 << 20
BLOCK_BYTES = 32 << 10
"""Below the size from which the C library maps a block of its own."""

libc = ctypes.CDLL(None)
pytestmark = pytest.mark.skipif(
    not hasattr(libc, "malloc_trim"), reason="the C library is not glibc"
)


def resident() -> int:
    found = resident_bytes()
    assert found is not None
    return found


class HeldMemory:
    """Blocks of the C library's heap; the last one keeps the heap from shrinking by itself."""

    def __init__(self, size: int) -> None:
        libc.malloc.restype = ctypes.c_void_p
        libc.free.argtypes = [ctypes.c_void_p]
        self.blocks = [libc.malloc(BLOCK_BYTES) for _ in range(size // BLOCK_BYTES)]
        for block in self.blocks:
            ctypes.memset(block, 1, BLOCK_BYTES)
        self.last = libc.malloc(BLOCK_BYTES)

    def free_all_but_the_last(self) -> None:
        for block in self.blocks:
            libc.free(block)
        self.blocks.clear()

    def close(self) -> None:
        self.free_all_but_the_last()
        libc.free(self.last)


def test_freed_memory_leaves_the_process():
    """In a process of its own: the heap of other tests would take the blocks in without growth."""
    code = "from tests.dynamo.test_freed_memory import check_return; check_return()"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def check_return() -> None:
    """Free memory leaves this process once it is free, and memory in use stays."""
    memory = FreedMemory()

    async def test() -> None:
        await memory.look(0.0)
        before = resident()
        held = HeldMemory(64 * MEBIBYTE)
        try:
            await memory.look(5.0)
            assert memory.returns == 1, "the memory has grown"
            assert resident() - before > 56 * MEBIBYTE, "memory in use stays"
            held.free_all_but_the_last()
            await memory.look(10.0)
            assert memory.returns == 1, "no growth since the last return"
            assert resident() - before > 56 * MEBIBYTE, "the C library keeps freed memory"
            await memory.look(35.0)
            assert resident() - before < 16 * MEBIBYTE
            assert memory.returns == 2
        finally:
            held.close()

    asyncio.run(test())


def test_memory_without_growth_is_left_alone():
    memory = FreedMemory()

    async def test() -> None:
        for number in range(20):
            await memory.look(100.0 * number)

    asyncio.run(test())
    assert memory.returns == 0


class MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            *("arena", "ordblks", "smblks", "hblks", "hblkhd"),
            *("usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"),
        )
    ]


def native_bytes() -> int:
    """Bytes in use on the native heap, without free memory."""
    libc.mallinfo2.restype = MallInfo
    info = libc.mallinfo2()
    return info.uordblks + info.hblkhd


MODELS = 40
ROUNDS = 6


def test_models_workers_and_feeds_that_left_leave_nothing_behind(entries, tmp_path, monkeypatch):
    monkeypatch.setattr("wardrop.dynamo.gateway_sync._REPAIR_INTERVAL_S", 0.01)
    folder = write_model(tmp_path)
    gateway = Gateway(
        json.dumps({"listen": "127.0.0.1:0", "upstreams": ["http://127.0.0.1:9"]})
        # Each model is compared with a frontend once a worker joins; no frontend is here.
    )
    source = Given()
    named: set[str] = set()

    async def find(_model: object) -> Path:
        return folder

    async def served() -> set[str]:
        return named

    sync = GatewaySync(gateway, source, Actions(find, served), 0.0)
    one = read_fleet_view(entries.worker(1).feed(5).content)
    (model,), (worker,), (feed,) = one.models.values(), one.workers.values(), one.feeds.values()

    def view(life: int) -> FleetView:
        models, workers, feeds = {}, {}, {}
        for number in range(MODELS):
            name, instance = f"flood-{life}-{number}", 1_000 * life + number + 1
            models[name] = replace(model, name=name, checksums=(f"{life}-{number}",))
            joined = replace(worker, model=name, instance=instance)
            workers[name, joined.role, instance] = joined
            feeds[instance] = replace(feed, publisher_id=instance, model=name, instance=instance)
        named.clear()
        named.update(models)
        return FleetView(models, workers, feeds)

    def counts() -> dict[str, int]:
        gc.collect()
        status = json.loads(gateway.status())
        return {
            "models": len(status["models"]),
            "feeds": len(status["feeds"]),
            "series": len(gateway.metrics().splitlines()),
            "restores": len(sync._restores),
            "refused": len(sync._refused),
            "jobs": len(sync._models._jobs) + len(sync._models._found) + len(sync._models._locks),
            "reads": len(sync.blocks._read_s) + len(sync.blocks._unread),
        }

    async def flood(life: int) -> None:
        source.queue.put_nowait(view(life))
        await wait_until_async(lambda: len(sync.view.feeds) == MODELS, "all feeds of the fleet")
        gateway.metrics()
        source.queue.put_nowait(FleetView())
        await wait_until_async(lambda: not sync.view.models, "the end of the fleet")

    async def test() -> None:
        tasks = [asyncio.create_task(part) for part in (sync.follow(), sync.repair())]
        empty = counts()
        await flood(0)
        await flood(1)
        await wait_until_async(lambda: counts() == empty, "the end of everything of the models")
        objects, native = len(gc.get_objects()), native_bytes()
        for life in range(2, 2 + ROUNDS):
            await flood(life)
        await wait_until_async(
            lambda: counts() == empty, f"counts as before: {empty}, not {counts()}"
        )
        # A kept object for each model would be 240 objects; a kept tokeniser has 100 kB and more.
        assert len(gc.get_objects()) - objects < ROUNDS * MODELS
        assert native_bytes() - native < 2 * MEBIBYTE
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    gateway.start()
    try:
        asyncio.run(test())
    finally:
        gateway.stop()
