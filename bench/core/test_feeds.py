"""vLLM's KV event frames into a router: decoded in Rust beside decoded in Python.

`feed` is `EngineFeed.apply`: decode, hash and apply, without the GIL. The baseline `msgspec`
decodes each frame in Python and applies its events one by one. Times are processor time of all
frames.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from bench.core.same_blocks import BLOCK_SIZE

import wardrop
from wardrop.engines import EngineFeed

msgspec = pytest.importorskip("msgspec", reason="msgspec is not installed: no frame can be made")

FRAMES = {"small": 2_000, "full": 20_000}
RUNS = 3


def frames(count: int, blocks: int) -> list[bytes]:
    """Frames of one stored event each, as vLLM writes them."""
    rng = random.Random(3)
    made = []
    for number in range(count):
        stored = {
            "type": "BlockStored",
            "block_hashes": [rng.getrandbits(64) for _ in range(blocks)],
            "parent_block_hash": None,
            "token_ids": [rng.randrange(32_000) for _ in range(blocks * BLOCK_SIZE)],
            "block_size": BLOCK_SIZE,
            "lora_id": None,
            "medium": "GPU",
            "extra_keys": [None] * blocks,
        }
        made.append(msgspec.msgpack.encode([float(number), [stored], 0]))
    return made


def apply_in_rust(router: wardrop.Router, payloads: list[bytes]) -> None:
    feed = EngineFeed(BLOCK_SIZE)
    for sequence, payload in enumerate(payloads):
        feed.apply(router, 0, sequence, payload)


def apply_in_python(router: wardrop.Router, payloads: list[bytes]) -> None:
    for payload in payloads:
        for event in msgspec.msgpack.decode(payload)[1]:
            names, tokens = event["block_hashes"], event["token_ids"]
            router.apply(0, wardrop.Stored(names, tokens=tokens, block_size=event["block_size"]))


ARMS: dict[str, Callable[[wardrop.Router, list[bytes]], None]] = {
    "msgspec": apply_in_python,
    "feed": apply_in_rust,
}


@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("blocks", [1, 64])
@pytest.mark.parametrize("mode", ["xxh3", "keyed"])
def test_frames(arm: str, blocks: int, mode: str, benchmark: Any, request: Any) -> None:
    payloads = frames(FRAMES[request.config.getoption("--grid")], blocks)
    used: list[wardrop.Router] = []

    def fresh() -> tuple[tuple[wardrop.Router, list[bytes]], dict[str, Any]]:
        router = wardrop.Router(BLOCK_SIZE, "dynamo", hash=mode)
        router.add_worker(0)
        used[:] = [router]
        return (router, payloads), {}

    def check(*_: Any) -> None:
        held = used[0].snapshot()["workers"][0]["held_blocks"][0]
        assert held == len(payloads) * blocks, "every block must be held"

    benchmark.group = f"feed: {len(payloads)} frames of {blocks} blocks, {mode}"
    benchmark.pedantic(ARMS[arm], setup=fresh, teardown=check, rounds=RUNS)
    stored = len(payloads) * blocks
    info = {"part": "feeds", "hash": mode, "blocks_per_frame": blocks, "arm": arm}
    benchmark.extra_info.update(info, stored_blocks=stored)
