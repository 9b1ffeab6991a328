"""Prints the blocks that the workers of an endpoint hold, as a JSON list of stored events.

A script for an interpreter with Dynamo: `block_reader.py ENDPOINT BLOCK_SIZE`. It imports nothing
of `wardrop`, which that interpreter may lack. It makes a `dynamo.llm.KvRouter`, which asks every
worker for its blocks, waits until two readings in a row agree, and prints `KvRouter.dump_events()`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from typing import Any, cast

_SETTLE_S = 0.25
_RECOVERY_S = 5.0


def blocks_held(events: list[dict[str, Any]]) -> Counter[tuple[int, int]]:
    """Number of blocks by worker and rank.

    Two equal results in a row mean that the router has recovered all blocks.
    """
    blocks: Counter[tuple[int, int]] = Counter()
    for event in events:
        stored: dict[str, Any] = event["event"]["data"].get("stored") or {}
        rank = int(event["event"].get("dp_rank") or 0)
        blocks[int(event["worker_id"]), rank] += len(stored.get("blocks", ()))
    return blocks


async def _print_dump(endpoint_name: str, block_size: int) -> None:
    from dynamo.llm import KvRouter, KvRouterConfig  # pyright: ignore
    from dynamo.runtime import DistributedRuntime  # pyright: ignore

    backend = os.environ.get("DYN_DISCOVERY_BACKEND", "etcd")
    plane = os.environ.get("DYN_REQUEST_PLANE", "tcp")
    runtime = cast(Any, DistributedRuntime)(asyncio.get_running_loop(), backend, plane)
    endpoint = runtime.endpoint(endpoint_name)
    client = await endpoint.client()
    await asyncio.wait_for(client.wait_for_instances(), _RECOVERY_S)
    router = cast(Any, KvRouter)(
        endpoint=endpoint, block_size=block_size, kv_router_config=cast(Any, KvRouterConfig)()
    )
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + _RECOVERY_S
    text, previous = "[]", None
    while loop.time() < deadline_s:
        await asyncio.sleep(_SETTLE_S)
        text = str(await router.dump_events())
        now = blocks_held(cast(list[dict[str, Any]], json.loads(text)))
        if now == previous:
            break
        previous = now
    sys.stdout.write(text)
    sys.stdout.flush()
    # A regular shutdown of the runtime logs errors, and its threads have nothing left to do.
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_print_dump(sys.argv[1], int(sys.argv[2])))
