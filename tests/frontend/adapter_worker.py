"""A worker of Dynamo with LoRA adapters: Dynamo's runtime around a scripted engine.

`python adapter_worker.py --model FOLDER --name NAME --block-size N [--adapter NAME ...]`

Dynamo's mock workers have no adapters. This worker keeps the blocks of each adapter's prompts
apart, and publishes them as KV events. It prints one JSON line for each request: adapter, tokens
and cached tokens. SIGUSR1 unloads its adapters. It imports nothing of this project.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import signal
from collections.abc import AsyncIterator
from typing import Any

from dynamo.llm import (
    KvEventPublisher,
    ModelInput,
    ModelRuntimeConfig,
    ModelType,
    WorkerType,
    register_model,
    unregister_model,
)
from dynamo.runtime import DistributedRuntime

ANSWER = 17
"""The token of every answer."""
KV_BLOCKS = 4096


class Engine:
    """Answers every request with one token, and remembers the blocks of its prompts."""

    def __init__(self, block_size: int, publisher: KvEventPublisher) -> None:
        self.block_size = block_size
        self.publisher = publisher
        self.held: set[int] = set()

    def block_hashes(self, tokens: list[int], adapter: str | None) -> list[int]:
        """Hash of each whole block, with its prefix and adapter; signed 64-bit integers."""
        digest = hashlib.blake2b((adapter or "").encode(), digest_size=8)
        hashes = []
        for end in range(self.block_size, len(tokens) + 1, self.block_size):
            digest.update(json.dumps(tokens[end - self.block_size : end]).encode())
            hashes.append(int.from_bytes(digest.digest(), "big", signed=True))
        return hashes

    def store(self, tokens: list[int], adapter: str | None) -> int:
        """Store the blocks of a prompt. Returns the blocks that were held before."""
        hashes = self.block_hashes(tokens, adapter)
        cached = 0
        while cached < len(hashes) and hashes[cached] in self.held:
            cached += 1
        new = hashes[cached:]
        if new:
            self.held.update(new)
            self.publisher.publish_stored(
                tokens[cached * self.block_size : len(hashes) * self.block_size],
                [self.block_size] * len(new),
                new,
                parent_hash=hashes[cached - 1] if cached else None,
                lora_name=adapter,
            )
        return cached

    async def generate(self, request: dict[str, Any]) -> AsyncIterator[Any]:
        tokens = request["token_ids"]
        adapter = (request.get("routing") or {}).get("lora_name")
        cached = self.store(tokens, adapter) * self.block_size
        print(json.dumps({"adapter": adapter, "tokens": len(tokens), "cached": cached}), flush=True)
        usage = {
            "prompt_tokens": len(tokens),
            "completion_tokens": 1,
            "total_tokens": len(tokens) + 1,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        yield {"token_ids": [ANSWER], "finish_reason": "length", "completion_usage": usage}


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--block-size", type=int, default=16)
    parser.add_argument("--adapter", action="append", default=[])
    options = parser.parse_args()
    loop = asyncio.get_running_loop()
    runtime = DistributedRuntime(loop, "file", "tcp", event_plane="zmq")
    endpoint = runtime.endpoint("dynamo.backend.generate")
    publisher = KvEventPublisher(
        endpoint, kv_block_size=options.block_size, enable_local_indexer=True
    )
    engine = Engine(options.block_size, publisher)
    limits = ModelRuntimeConfig()
    limits.total_kv_blocks = KV_BLOCKS
    kinds = ModelType.Chat | ModelType.Completions

    async def register(adapter: str | None) -> None:
        names = {"lora_name": adapter, "base_model_path": options.model} if adapter else {}
        await register_model(
            ModelInput.Tokens,
            kinds,
            endpoint,
            options.model,
            None if adapter else options.name,
            worker_type=WorkerType.Aggregated,
            kv_cache_block_size=options.block_size,
            runtime_config=limits,
            ignore_weights=True,
            **names,
        )

    async def register_all() -> None:
        for adapter in [None, *options.adapter]:
            await register(adapter)
        print(json.dumps({"registered": options.adapter}), flush=True)

    async def unload() -> None:
        for adapter in options.adapter:
            await unregister_model(endpoint, lora_name=adapter)
        print(json.dumps({"unloaded": options.adapter}), flush=True)

    tasks: set[asyncio.Task[None]] = set()
    loop.add_signal_handler(signal.SIGUSR1, lambda: tasks.add(loop.create_task(unload())))
    await asyncio.gather(endpoint.serve_endpoint(engine.generate), register_all())


if __name__ == "__main__":
    asyncio.run(main())
