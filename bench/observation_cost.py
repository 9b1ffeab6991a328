"""CPU and memory of all observation, on and off, in one run: page, receipts, records, spans.

Each arm is a router in a process of its own, with 64 workers and a price of anarchy as every
router has it. All arms get the same prompts in turn, round by round. CPU time and resident memory
are those of the whole process, Python's control plane and page included.

    python -m bench.observation_cost --rounds 3 --requests 150
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.live_page import no_wiring, view
from bench.machine import machine
from bench.request_cost import BLOCK_TOKENS, PROMPT_TOKENS, drive, served

from wardrop._core import Gateway
from wardrop.control import Door
from wardrop.service.admin import Admin
from wardrop.service.live import LiveFeed

WORKERS = 64
ROUND_S = 5.0
"""Time from the begin of a round to its second reading: the page, the writer and the exporter work
once a second."""
RECEIPTS = 1000


@dataclass(frozen=True)
class Arm:
    """What a router keeps and shows.

    Attributes:
        receipts: Receipts that are kept.
        viewers: Open pages; None without an admin port.
        records: Whether each request has a record.
        spans: Whether each request has spans.
    """

    receipts: int = 0
    viewers: int | None = None
    records: bool = False
    spans: bool = False


ARMS = {
    "all off": Arm(),
    "receipts": Arm(receipts=RECEIPTS),
    "page, 1 viewer": Arm(viewers=1),
    "records": Arm(records=True),
    "spans, ratio 1": Arm(spans=True),
    "all on": Arm(RECEIPTS, 1, records=True, spans=True),
}


@dataclass(frozen=True)
class Reading:
    """CPU time of a process in seconds, and its resident memory in bytes."""

    cpu_s: float
    memory_bytes: int


def config(arm: Arm, url: str, folder: Path) -> dict[str, Any]:
    """Configuration of the gateway of an arm."""
    routing = {"policy": {"name": "toll"}, "receipts": arm.receipts}
    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "upstreams": [url], "routing": routing}
    if arm.records:
        settings["records"] = {"dir": str(folder)}
    if arm.spans:
        settings["tracing"] = {
            "endpoint": f"{url}/v1/traces",
            "sampler": "always_on",
            "ratio": 1.0,
            "service_name": "bench",
        }
    return settings


def read() -> Reading:
    """The present figures of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Reading(time.process_time(), pages * 4096)


async def serve(gateway: Gateway, arm: Arm, pipe: Connection) -> None:
    """Report a reading for each message of the parent; end with the pipe."""
    door = Door(gateway)
    admin = Admin(gateway, door, 0, LiveFeed(gateway, door, dict), no_wiring)
    port = await admin.start() if arm.viewers is not None else None
    pipe.send((gateway.start(), port))
    while await asyncio.to_thread(pipe.recv):
        pipe.send(read())
    if port is not None:
        await admin.stop()
    gateway.stop()


def run(arm: Arm, url: str, folder: Path, pipe: Connection) -> None:
    """One router, until the parent ends it."""
    gateway = Gateway(json.dumps(config(arm, url, folder)))
    model = {"name": "m", "block_size": BLOCK_TOKENS, "context_length": 1 << 20}
    gateway.upsert_model(json.dumps(model))
    for instance in range(1, WORKERS + 1):
        worker = {"model": "m", "role": "aggregated", "instance": instance}
        gateway.upsert_worker(json.dumps(worker | {"total_kv_blocks": 16_384}))
    asyncio.run(serve(gateway, arm, pipe))


class Router:
    """One arm: the process of its router, and its open pages."""

    def __init__(self, arm: Arm, url: str, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        process = context.Process(target=run, args=(arm, url, folder, theirs))
        process.start()
        self.port, admin = self.pipe.recv()
        readers = [context.Process(target=view, args=(admin,)) for _ in range(arm.viewers or 0)]
        for reader in readers:
            reader.start()
        self._process, self._readers = process, readers

    def reading(self) -> Reading:
        """The present figures of the process."""
        self.pipe.send(True)
        return self.pipe.recv()

    def close(self) -> None:
        """End the process and its pages."""
        for reader in self._readers:
            reader.terminate()
            reader.join()
        self.pipe.send(False)
        self._process.join()


@contextmanager
def routers(url: str, folder: Path) -> Iterator[dict[str, Router]]:
    """One router per arm."""
    arms = enumerate(ARMS.items())
    running = {name: Router(arm, url, folder / str(number)) for number, (name, arm) in arms}
    try:
        yield running
    finally:
        for router in running.values():
            router.close()


def one_round(router: Router, bodies: list[bytes]) -> float:
    """CPU seconds of a router over one round."""
    before, began_s = router.reading(), time.monotonic()
    drive(router.port, bodies)
    time.sleep(max(0.0, began_s + ROUND_S - time.monotonic()))
    return router.reading().cpu_s - before.cpu_s


def main() -> None:
    """Print CPU per round and memory of each arm, and their differences from `all off`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=150)
    options = parser.parse_args()
    prompts = [[at * PROMPT_TOKENS + n for n in range(PROMPT_TOKENS)] for at in range(50)]
    texts = [json.dumps({"model": "m", "prompt": tokens}).encode() for tokens in prompts]
    bodies = [texts[at % len(texts)] for at in range(options.requests)]
    with served() as url, tempfile.TemporaryDirectory() as name, routers(url, Path(name)) as all_:
        for router in all_.values():
            drive(router.port, bodies)
        found: dict[str, list[float]] = {arm: [] for arm in all_}
        for _ in range(options.rounds):
            for arm, router in all_.items():
                found[arm].append(one_round(router, bodies))
        memory = {arm: router.reading().memory_bytes / 2**20 for arm, router in all_.items()}
    off = found["all off"]
    print(f"{machine()}; {WORKERS} workers, {options.requests} requests in {ROUND_S:g} s")
    for arm, cpu_s in found.items():
        more = [1e3 * (one - base) for one, base in zip(cpu_s, off, strict=True)]
        print(
            f"{arm:>16}: {1e3 * statistics.median(cpu_s):6.0f} ms of CPU "
            f"({statistics.median(more):+5.0f}; {min(more):+.0f} to {max(more):+.0f}), "
            f"{memory[arm]:6.1f} MiB ({memory[arm] - memory['all off']:+.1f})"
        )


if __name__ == "__main__":
    main()
