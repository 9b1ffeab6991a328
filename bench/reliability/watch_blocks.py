"""Prints, four times a second, how many blocks Dynamo's `KvRouter` believes each worker to hold.

watch_blocks.py ENDPOINT BLOCK_SIZE
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any, cast

from wardrop.dynamo.block_reader import blocks_held


async def watch(endpoint_name: str, block_size: int) -> None:
    """Print one JSON line per reading: blocks by worker."""
    from dynamo.llm import KvRouter, KvRouterConfig
    from dynamo.runtime import DistributedRuntime

    runtime = cast(Any, DistributedRuntime)(
        asyncio.get_running_loop(), os.environ["DYN_DISCOVERY_BACKEND"], "tcp"
    )
    endpoint = runtime.endpoint(endpoint_name)
    client = await endpoint.client()
    await client.wait_for_instances()
    router = cast(Any, KvRouter)(
        endpoint=endpoint, block_size=block_size, kv_router_config=cast(Any, KvRouterConfig)()
    )
    while True:
        events = json.loads(str(await router.dump_events()))
        counts: dict[str, int] = {}
        for (worker, _), blocks in blocks_held(events).items():
            counts[str(worker)] = counts.get(str(worker), 0) + blocks
        print(json.dumps(counts), flush=True)
        await asyncio.sleep(0.25)


if __name__ == "__main__":
    asyncio.run(watch(sys.argv[1], int(sys.argv[2])))
