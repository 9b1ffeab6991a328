"""CPU of the live page at 64 workers: without it, with it, and with 1 and 4 viewers, in one run.

    python -m bench.live_page [--seconds 20] [--workers 64]

The gateway has no traffic, so the process does nothing else. Each arm reads the CPU time of the
process over the same time; the viewers run in a process of their own. The arms alternate twice.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import time
from http.client import HTTPConnection

from bench.machine import machine

from wardrop._core import Gateway
from wardrop.control import Door
from wardrop.service.admin import Admin
from wardrop.service.live import LiveFeed
from wardrop.service.wiring import SCHEMA, Wiring

ARMS = {"no page": None, "page, no viewer": 0, "page, 1 viewer": 1, "page, 4 viewers": 4}


def no_wiring() -> Wiring:
    """The wiring, which no arm asks for."""
    return Wiring(SCHEMA, 0.0, "", None, None, "", {}, 0)


def view(port: int) -> None:
    """Read the feed until killed."""
    conn = HTTPConnection("127.0.0.1", port)
    conn.request("GET", "/v1/live")
    answer = conn.getresponse()
    while answer.readline():
        pass


async def measure(gateway: Gateway, viewers: int | None, seconds: float) -> float:
    """Share of a core that this process uses."""
    door = Door(gateway)
    admin = Admin(gateway, door, 0, LiveFeed(gateway, door, dict), no_wiring)
    readers: list[multiprocessing.Process] = []
    if viewers is not None:
        port = await admin.start()
        context = multiprocessing.get_context("spawn")
        readers = [context.Process(target=view, args=(port,)) for _ in range(viewers)]
        for reader in readers:
            reader.start()
        await asyncio.sleep(3)
    began_s, cpu_s = time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    share = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
    for reader in readers:
        reader.terminate()
        reader.join()
    if viewers is not None:
        await admin.stop()
    return share


def main() -> None:
    """Print one line per arm."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", type=int, default=64)
    given = parser.parse_args()
    gateway = Gateway('{"listen": "127.0.0.1:0"}')
    gateway.upsert_model(json.dumps({"name": "m", "block_size": 16}))
    for instance in range(given.workers):
        worker = {"model": "m", "role": "aggregated", "instance": 2**63 + instance}
        gateway.upsert_worker(json.dumps(worker | {"total_kv_blocks": 16384}))
    shares: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for _ in range(2):
        for arm, viewers in ARMS.items():
            shares[arm].append(asyncio.run(measure(gateway, viewers, given.seconds)))
    gateway.stop()
    print(f"{machine()}; {given.workers} workers")
    for arm, found in shares.items():
        print(f"{arm:>16}: {', '.join(f'{100 * share:.3f} %' for share in found)} of a core")


if __name__ == "__main__":
    main()
