"""Measure several routers in front of one scripted fleet, with peers, without, and with late news.

    python -m bench.peers [--seconds 6] [--out bench/results/peers.json]

Every arm serves the same arrivals: bursts of requests with prompts of several lengths, sent to the
routers in turn. The load spread is the standard deviation of the prefill backlog over the workers,
as its mean over time, sampled in the fleet itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.peers.delay import DelayProxy
from bench.peers.fleet import Fleet, Worker

from wardrop._core import Gateway

WORKERS = 8
PREFILL_TOKENS_PER_S = 20_000.0
DECODE_S = 0.2
BURST = 12
LOAD = 0.6
LENGTHS = (200, 400, 800, 2400)
SAMPLE_S = 0.01


@dataclass(frozen=True)
class Arm:
    """One set-up.

    Attributes:
        routers: Routers in front of the fleet.
        shares: Whether they follow one another.
        delay_ms: Time by which news of a peer come later than they left it.
    """

    routers: int
    shares: bool
    delay_ms: float = 0.0


ARMS = (
    Arm(1, False),
    Arm(2, False),
    Arm(2, True),
    Arm(4, False),
    Arm(4, True),
    *(Arm(2, True, delay) for delay in (10, 30, 100, 300, 1000)),
)


@dataclass
class Figures:
    """What one arm measured; times in milliseconds."""

    ttft_ms_mean: float
    ttft_ms_p50: float
    ttft_ms_p95: float
    ttft_ms_p99: float
    spread: float
    requests: int


def arrivals(seconds: float, seed: int) -> list[tuple[float, int]]:
    """Times in seconds and prompt lengths in tokens: Poisson bursts of `BURST` requests."""
    rng = random.Random(seed)
    mean_s = statistics.mean(LENGTHS) / PREFILL_TOKENS_PER_S
    bursts_per_s = LOAD * WORKERS / (BURST * mean_s)
    found: list[tuple[float, int]] = []
    at_s = 0.2
    while (at_s := at_s + rng.expovariate(bursts_per_s)) < seconds:
        found += [(at_s + 0.001 * number, rng.choice(LENGTHS)) for number in range(BURST)]
    return sorted(found)


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


async def start_routers(arm: Arm, upstream: str) -> tuple[list[Gateway], list[int], list[Any]]:
    """Routers that serve, their ports, and the proxies between them."""
    own = [f"127.0.0.1:{free_port()}" for _ in range(arm.routers)]
    proxies: list[DelayProxy] = []
    routers: list[Gateway] = []
    ports: list[int] = []
    for number, address in enumerate(own):
        named = [other for other in own if other != address]
        if arm.delay_ms:
            made = [
                DelayProxy((other.split(":")[0], int(other.split(":")[1])), arm.delay_ms / 1e3)
                for other in named
            ]
            named = [await proxy.start() for proxy in made]
            proxies += made
        config: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "upstreams": [upstream],
            "worker_threads": 1,
            "router_id": f"router-{number}",
            "routing": {"policy": {"name": "toll"}, "seed": number},
        }
        if arm.shares:
            config["peers"] = {"listen": address, "routers": named, "silence_ms": 10_000}
        router = Gateway(json.dumps(config))
        router.upsert_model(json.dumps({"name": "m", "block_size": 16, "context_length": 8192}))
        for instance in range(1, WORKERS + 1):
            worker = {"model": "m", "role": "aggregated", "instance": instance}
            router.upsert_worker(json.dumps(worker))
        routers.append(router)
        ports.append(router.start())
    if arm.shares:
        needed = f'wardrop_peers_connected{{router_id="router-0"}} {arm.routers - 1}'
        while needed not in routers[0].metrics():
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.3)
    return routers, ports, proxies


async def ask(port: int, tokens: list[int], times_s: list[float]) -> None:
    """One request; its TTFT goes to `times_s`."""
    loop = asyncio.get_running_loop()
    body = json.dumps({"model": "m", "prompt": tokens, "max_tokens": 16, "stream": True}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n"
        f"connection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    started_s = loop.time()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.encode() + body)
    answer = await reader.readuntil(b"data: ")
    times_s.append(loop.time() - started_s)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"a request failed: {answer[:60]!r}")
    await reader.read()
    writer.close()


async def run(arm: Arm, seconds: float, seed: int) -> tuple[list[float], list[float]]:
    """TTFTs in seconds and samples of the load spread of one arm."""
    fleet = Fleet(
        {number: Worker() for number in range(1, WORKERS + 1)}, PREFILL_TOKENS_PER_S, DECODE_S
    )
    routers, ports, proxies = await start_routers(arm, await fleet.start())
    loop = asyncio.get_running_loop()
    rng = random.Random(seed)
    times_s: list[float] = []
    spreads: list[float] = []
    done = asyncio.Event()

    async def sample() -> None:
        while not done.is_set():
            backlog_s = fleet.backlog_s()
            if sum(backlog_s) > 0:
                spreads.append(statistics.pstdev(backlog_s))
            await asyncio.sleep(SAMPLE_S)

    sampling = asyncio.create_task(sample())
    started_s = loop.time()
    asked: list[asyncio.Task[None]] = []
    for number, (at_s, length) in enumerate(arrivals(seconds, seed)):
        await asyncio.sleep(started_s + at_s - loop.time())
        tokens = [rng.randrange(30_000) for _ in range(length)]
        asked.append(asyncio.create_task(ask(ports[number % len(ports)], tokens, times_s)))
    await asyncio.gather(*asked)
    done.set()
    await sampling
    for router in routers:
        router.stop()
    for proxy in proxies:
        await proxy.stop()
    await fleet.stop()
    return times_s, spreads


def figures(times_s: list[float], spreads: list[float]) -> Figures:
    """The summary of an arm."""
    times_ms = sorted(1e3 * time_s for time_s in times_s)
    cuts = statistics.quantiles(times_ms, n=100)
    return Figures(
        ttft_ms_mean=statistics.mean(times_ms),
        ttft_ms_p50=cuts[49],
        ttft_ms_p95=cuts[94],
        ttft_ms_p99=cuts[98],
        spread=1e3 * statistics.mean(spreads),
        requests=len(times_ms),
    )


def main() -> None:
    """Run every arm, interleaved over the seeds, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=6.0, help="traffic of one run")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each arm")
    parser.add_argument("--out", type=Path, help="file for the results, as JSON")
    options = parser.parse_args()
    times_s: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
    spreads: dict[Arm, list[float]] = {arm: [] for arm in ARMS}
    for seed in range(options.seeds):
        for arm in ARMS:
            some_times_s, some_spreads = asyncio.run(run(arm, options.seconds, seed))
            times_s[arm] += some_times_s
            spreads[arm] += some_spreads
    rows = {arm: figures(times_s[arm], spreads[arm]) for arm in ARMS}
    one = rows[ARMS[0]]
    print("routers  peers  delay  TTFT mean, p50, p95, p99 (ms)   mean / one   spread (ms)  / one")
    for arm, row in rows.items():
        print(
            f"{arm.routers:7}  {'yes' if arm.shares else 'no':>5}  {arm.delay_ms:5g}  "
            f"{row.ttft_ms_mean:6.1f} {row.ttft_ms_p50:6.1f} {row.ttft_ms_p95:6.1f} "
            f"{row.ttft_ms_p99:6.1f}   {row.ttft_ms_mean / one.ttft_ms_mean:9.2f}   "
            f"{row.spread:9.1f}  {row.spread / one.spread:6.2f}"
        )
    if options.out:
        result = [asdict(arm) | asdict(row) for arm, row in rows.items()]
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
