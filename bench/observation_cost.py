"""CPU and memory of all observation, on and off, in one run: page, receipts, records, spans, index.

Each arm is a router in a process of its own, with 64 workers. Every arm but one has the price of
anarchy against the lower bound, as every router has it. All arms get the same prompts in turn,
round by round. CPU time and resident memory are those of the whole process, Python's control plane
and page included. The last column is what the router itself counts for the price of anarchy.

    python -m bench.observation_cost --rounds 3 --requests 150 [--stream]
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
WINDOW_S = 5.0
"""Length of a window of the price of anarchy: each round then pays for a bound."""


@dataclass(frozen=True)
class Arm:
    """What a router keeps and shows.

    Attributes:
        receipts: Receipts that are kept.
        viewers: Open pages; None without an admin port.
        records: Whether each request has a record.
        spans: Whether each request has spans.
        bound: Whether the price of anarchy against the bound is on, in windows of `WINDOW_S`.
    """

    receipts: int = 0
    viewers: int | None = None
    records: bool = False
    spans: bool = False
    bound: bool = True


ARMS = {
    "all off": Arm(),
    "no index": Arm(bound=False),
    "receipts": Arm(receipts=RECEIPTS),
    "page, 1 viewer": Arm(viewers=1),
    "records": Arm(records=True),
    "spans, ratio 1": Arm(spans=True),
    "all on": Arm(RECEIPTS, 1, records=True, spans=True),
}


@dataclass(frozen=True)
class Reading:
    """CPU time of a process and of its price of anarchy in seconds, and its memory in bytes."""

    cpu_s: float
    bound_cpu_s: float
    memory_bytes: int


def config(arm: Arm, url: str, folder: Path) -> dict[str, Any]:
    """Configuration of the gateway of an arm."""
    routing = {"policy": {"name": "toll"}, "receipts": arm.receipts}
    routing["bound_window_s"] = WINDOW_S if arm.bound else 0
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


def read(gateway: Gateway) -> Reading:
    """The present figures of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    models = json.loads(gateway.status())["models"]
    bounds = [model["price_of_anarchy"] or {} for model in models]
    bound_cpu_s = sum(bound.get("cpu_s", 0.0) for bound in bounds)
    return Reading(time.process_time(), bound_cpu_s, pages * 4096)


async def serve(gateway: Gateway, arm: Arm, pipe: Connection) -> None:
    """Report a reading for each message of the parent; end with the pipe."""
    door = Door(gateway)
    admin = Admin(gateway, door, 0, LiveFeed(gateway, door, dict), no_wiring)
    port = await admin.start() if arm.viewers is not None else None
    pipe.send((gateway.start(), port))
    while await asyncio.to_thread(pipe.recv):
        pipe.send(read(gateway))
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


@dataclass(frozen=True)
class Spent:
    """CPU seconds of a router over one round, and the part for the price of anarchy."""

    cpu_s: float
    bound_cpu_s: float


def one_round(router: Router, bodies: list[bytes]) -> Spent:
    """What a router spends over one round."""
    before, began_s = router.reading(), time.monotonic()
    drive(router.port, bodies)
    time.sleep(max(0.0, began_s + ROUND_S - time.monotonic()))
    after = router.reading()
    return Spent(after.cpu_s - before.cpu_s, after.bound_cpu_s - before.bound_cpu_s)


def main() -> None:
    """Print CPU per round and memory of each arm, and their differences from `all off`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument(
        "--stream", action="store_true", help="streamed answers: the curves learn, and bounds exist"
    )
    options = parser.parse_args()
    prompts = [[at * PROMPT_TOKENS + n for n in range(PROMPT_TOKENS)] for at in range(50)]
    head = {"stream": True} if options.stream else {}
    texts = [json.dumps({**head, "model": "m", "prompt": tokens}).encode() for tokens in prompts]
    bodies = [texts[at % len(texts)] for at in range(options.requests)]
    with served() as url, tempfile.TemporaryDirectory() as name, routers(url, Path(name)) as all_:
        for router in all_.values():
            drive(router.port, bodies)
        found: dict[str, list[Spent]] = {arm: [] for arm in all_}
        for _ in range(options.rounds):
            for arm, router in all_.items():
                found[arm].append(one_round(router, bodies))
        memory = {arm: router.reading().memory_bytes / 2**20 for arm, router in all_.items()}
    off = [spent.cpu_s for spent in found["all off"]]
    print(f"{machine()}; {WORKERS} workers, {options.requests} requests in {ROUND_S:g} s")
    for arm, spent in found.items():
        cpu_s = [one.cpu_s for one in spent]
        share = statistics.median(one.bound_cpu_s for one in spent) / ROUND_S
        more = [1e3 * (one - base) for one, base in zip(cpu_s, off, strict=True)]
        print(
            f"{arm:>16}: {1e3 * statistics.median(cpu_s):6.0f} ms of CPU "
            f"({statistics.median(more):+5.0f}; {min(more):+.0f} to {max(more):+.0f}), "
            f"{memory[arm]:6.1f} MiB ({memory[arm] - memory['all off']:+.1f}), index "
            f"{100 * share:.2f} % of a core"
        )


if __name__ == "__main__":
    main()
