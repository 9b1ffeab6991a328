"""Events recorded from a real vLLM engine: what the router predicts, what the engine found."""

import io
import json
import os
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import wardrop
from wardrop.engines import EngineFeed

msgspec = pytest.importorskip(
    "msgspec", reason="msgspec is not installed: no recording can be read"
)
SHARED = Path(os.environ.get("WARDROP_SHARED", Path(__file__).parents[3] / "shared"))
BLOCK = 32


def read(name: str) -> bytes:
    import zstandard

    path = SHARED / "vllm_events" / name
    if not path.exists():
        pytest.skip(f"{path} is not here: set WARDROP_SHARED to check against a real engine")
    return zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()


def messages(run: str) -> Iterator[tuple[float, int, bytes]]:
    raw, at = read(f"{run}.events.msgpack.zst"), 0
    while at < len(raw):
        (size,) = struct.unpack_from(">I", raw, at)
        record = msgspec.msgpack.decode(raw[at + 4 : at + 4 + size])
        yield record["t"], int.from_bytes(record["f"][1], "big"), record["f"][2]
        at += 4 + size


class Naive:
    """The slow way: a counter per engine hash, and chains of (parent, tokens, salt)."""

    def __init__(self) -> None:
        self.copies: Counter[int] = Counter()
        self.name: dict[tuple[int | None, tuple[int, ...], str], int] = {}

    def apply(self, payload: bytes) -> None:
        for event in msgspec.msgpack.decode(payload)[1]:
            if event["type"] == "BlockStored":
                parent = event["parent_block_hash"]
                for at, name in enumerate(event["block_hashes"]):
                    tokens = tuple(event["token_ids"][at * BLOCK : (at + 1) * BLOCK])
                    keys = (event["extra_keys"] or [None] * (at + 1))[at]
                    self.name[parent, tokens, keys[0] if keys else ""] = name
                    self.copies[name] += 1
                    parent = name
            elif event["type"] == "BlockRemoved":
                for name in event["block_hashes"]:
                    self.copies[name] = max(0, self.copies[name] - 1)
            else:
                self.copies.clear()

    def overlap(self, prompt: list[int], salt: str) -> int:
        parent, blocks = None, 0
        for start in range(0, len(prompt) - BLOCK + 1, BLOCK):
            key = (parent, tuple(prompt[start : start + BLOCK]), salt if start == 0 else "")
            parent = self.name.get(key)
            if parent is None or not self.copies[parent]:
                break
            blocks += 1
        return blocks


@pytest.mark.parametrize("run", ["serial", "concurrent12"])
def test_the_prediction_at_send_time_is_as_true_as_the_events(run: str) -> None:
    lines = read(f"{run}.requests.jsonl.zst").decode().splitlines()
    requests: list[dict[str, Any]] = sorted(map(json.loads, lines), key=lambda r: r["t_send"])
    router, feed, naive = wardrop.Router(BLOCK), EngineFeed(BLOCK), Naive()
    router.add_worker(1)
    stream, counts = messages(run), Counter[str]()
    upcoming = next(stream, None)
    for request in requests:
        while upcoming and upcoming[0] <= request["t_send"]:
            feed.apply(router, 1, upcoming[1], upcoming[2])
            naive.apply(upcoming[2])
            upcoming = next(stream, None)
        prompt, salt = request["prompt_token_ids"], request.get("cache_salt") or ""
        found = router.find_matches(prompt, cache_namespace=salt).get((1, 0), (0, 0, 0))[0]
        justified = naive.overlap(prompt, salt)
        assert found <= justified, f"request {request['id']}: claims more than the events justify"
        if request.get("aborted") or request.get("cached_tokens") is None:
            counts["without_truth"] += 1
            continue
        most = (len(prompt) - 1) // BLOCK
        counts["requests"] += 1
        counts["exact"] += min(found, most) * BLOCK == request["cached_tokens"]
        counts["naive_exact"] += min(justified, most) * BLOCK == request["cached_tokens"]
    print(f"\n{run}: {dict(counts)}, feed {feed.counters}, {router.snapshot()['index']}")
    assert counts["exact"] >= counts["naive_exact"]
    assert counts["exact"] >= {"serial": 1464, "concurrent12": 2184}[run]
    assert feed.counters["malformed"] == feed.counters["skipped"] == 0


def test_a_malformed_message_is_refused() -> None:
    router, feed = wardrop.Router(BLOCK), EngineFeed(BLOCK)
    router.add_worker(1)
    with pytest.raises(ValueError, match="expected an array"):
        feed.apply(router, 1, 0, b"\xc0")
    with pytest.raises(KeyError, match="not registered"):
        feed.apply(router, 2, 0, msgspec.msgpack.encode([1.0, [{"type": "AllBlocksCleared"}], 0]))
    assert feed.counters["malformed"] == 1
