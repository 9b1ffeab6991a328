"""`Router.route` beside Dynamo's `SelectionService.select`, from tokens, 64 workers.

The baseline holds no KV blocks, which makes it faster. Wardrop's arms: `route_and_book`,
`route_to_release` (a request's whole life), `route_list` (tokens in a list, no booking),
`route_keyed` (hashes under a secret key), `route_known_prefix` (a prompt that is hashed already).
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from bench.conftest import Measure
from bench.core.same_blocks import BLOCK_SIZE

import wardrop

llm = pytest.importorskip("dynamo.llm", reason="Dynamo is not installed: no baseline")

WORKERS = 64
DEPTHS = (1, 128, 1024, 8192)


class AwaitedTime:
    """A clock for pytest-benchmark that only advances by the time inside an awaited call.

    `select` needs a running event loop. Entering the loop costs tens of microseconds that a server
    does not pay per request, so the baseline is timed inside the loop.
    """

    def __init__(self) -> None:
        self.elapsed_s = 0.0

    def __call__(self) -> float:
        return self.elapsed_s

    async def add(self, call: Any, argument: Any) -> Any:
        start = time.perf_counter()
        answer = await call(argument)
        self.elapsed_s += time.perf_counter() - start
        return answer


CLOCK = AwaitedTime()


def prompt(depth: int) -> list[int]:
    rng = random.Random(depth)
    return [rng.randrange(32_000) for _ in range(depth * BLOCK_SIZE)]


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def service(loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """Dynamo's selection service with 64 idle workers."""
    service = llm.SelectionService(indexer_threads=1)
    size = {"model_name": "m", "total_kv_blocks": 1 << 20, "max_num_batched_tokens": 8192}
    events = {"kv_events_endpoints": {0: "ipc:///tmp/nobody-publishes-here"}}
    for worker in range(WORKERS):
        record = {"worker_id": worker, "endpoint": "http://w", "block_size": BLOCK_SIZE}
        loop.run_until_complete(_awaited(service.upsert_worker, {**record, **size, **events}))
    yield service
    service.shutdown()


async def _awaited(call: Any, argument: Any) -> Any:
    return await call(argument)


def router(**options: Any) -> wardrop.Router:
    """64 idle workers under Dynamo's cost."""
    router = wardrop.Router(BLOCK_SIZE, "dynamo", **options)
    for worker in range(WORKERS):
        router.add_worker(worker)
    return router


def describe(benchmark: Any, depth: int, arm: str) -> dict[str, Any]:
    benchmark.group = f"selection: {WORKERS} workers, {depth * BLOCK_SIZE} tokens"
    return {"part": "selection", "workers": WORKERS, "blocks": depth, "arm": arm}


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("depth", DEPTHS)
def test_select_of_dynamo(
    depth: int, service: Any, loop: asyncio.AbstractEventLoop, benchmark: Any, rounds: int
) -> None:
    info = describe(benchmark, depth, "select")
    question = {"model_name": "m", "token_ids": prompt(depth)}
    for _ in range(100):  # the service registers its workers in the background
        answer = loop.run_until_complete(_awaited(service.select, question))
        if answer["potential_decode_blocks"] == depth:
            break
        time.sleep(0.1)
    assert answer["potential_decode_blocks"] == depth, answer

    def select() -> None:
        loop.run_until_complete(CLOCK.add(service.select, question))

    benchmark.pedantic(select, rounds=max(50, rounds // 10), warmup_rounds=5)
    benchmark.extra_info.update(info)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("arm", ["route_and_book", "route_to_release"])
def test_route_with_booking(arm: str, depth: int, benchmark: Any, rounds: int) -> None:
    info = describe(benchmark, depth, arm)
    pool, tokens = router(), np.array(prompt(depth), dtype=np.uint32)
    assert pool.route(tokens).cost == 2.0 * depth
    ids = itertools.count()

    def book(request_id: int) -> None:
        pool.route(tokens, request_id=request_id)

    def live(request_id: int) -> None:
        pool.route(tokens, request_id=request_id)
        end(request_id)

    def end(request_id: int) -> None:
        pool.prefill_done(request_id)
        pool.release(request_id)

    benchmark.pedantic(
        book if arm == "route_and_book" else live,
        setup=lambda: ((next(ids),), {}),
        teardown=end if arm == "route_and_book" else None,
        rounds=rounds,
        warmup_rounds=50,
    )
    benchmark.extra_info.update(info)


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("arm", ["route_list", "route_keyed", "route_known_prefix"])
def test_route_without_booking(arm: str, depth: int, benchmark: Any, measure: Measure) -> None:
    pool = router(hash="keyed") if arm == "route_keyed" else router()
    tokens = prompt(depth)
    form: Any = tokens if arm == "route_list" else np.array(tokens, dtype=np.uint32)
    if arm == "route_known_prefix":
        form = pool.prefix()
        form.extend(np.array(tokens, dtype=np.uint32))
    assert pool.route(form).cost == 2.0 * depth
    measure(pool.route, [form], **describe(benchmark, depth, arm))
