"""Frames made with the engines' own shapes.

SGLang's classes, as read in `sglang/srt/disaggregation/kv_events.py` of 0.5.23: its events are
maps, its batch an array. With `WARDROP_SGLANG_WHEEL` (a wheel of sglang) its own classes make the
frames, without installing it.
"""

import os
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import wardrop
from wardrop.engines import EngineFeed, decode_engine_batch

msgspec = pytest.importorskip("msgspec", reason="msgspec is not installed: no frame can be made")


def shapes() -> Any:
    """The classes with the wire form of SGLang's."""
    define = msgspec.defstruct
    event = {"tag": True, "omit_defaults": True}
    stored = define(
        "BlockStored",
        [
            ("block_hashes", list[int]),
            ("parent_block_hash", int | None),
            ("token_ids", list[Any]),
            ("block_size", int),
            ("lora_id", int | None),
            ("medium", str | None, None),
            ("cache_salt", str | None, None),
            ("session_id", str | None, None),
            ("lora_name", str | None, None),
        ],
        **event,
    )
    removed = define(
        "BlockRemoved", [("block_hashes", list[int]), ("medium", str | None, None)], **event
    )
    batch = define(
        "KVEventBatch",
        [("ts", float), ("events", list[Any]), ("attn_dp_rank", int | None, None)],
        array_like=True,
    )
    cleared = define("AllBlocksCleared", [], **event)
    return SimpleNamespace(
        BlockStored=stored, BlockRemoved=removed, AllBlocksCleared=cleared, KVEventBatch=batch
    )


def from_wheel(wheel: str) -> Any:
    """SGLang's own classes; what their module imports beside them is stubbed."""
    source = zipfile.ZipFile(wheel).read("sglang/srt/disaggregation/kv_events.py").decode()
    stubs = {}
    for name in ("sglang", "sglang.srt", "sglang.srt.utils", "sglang.srt.runtime_context"):
        stubs[name] = types.ModuleType(name)
    stubs["sglang.srt.utils.network"] = types.ModuleType("sglang.srt.utils.network")
    stubs["sglang.srt.utils.network"].__dict__["NetworkAddress"] = object
    stubs["sglang.srt.runtime_context"].__dict__["get_parallel"] = object
    module = types.ModuleType("sglang_kv_events")
    sys.modules.update(stubs)
    sys.modules[module.__name__] = module
    try:
        exec(compile(source, "kv_events.py", "exec"), module.__dict__)
    finally:
        for name in [*stubs, module.__name__]:
            del sys.modules[name]
    return module


@pytest.fixture(params=["shapes", "wheel"])
def sglang(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "shapes":
        yield shapes()
        return
    wheel = os.environ.get("WARDROP_SGLANG_WHEEL", "")
    if not Path(wheel).is_file():
        pytest.skip("set WARDROP_SGLANG_WHEEL to a wheel of sglang to make frames with its classes")
    yield from_wheel(wheel)


def pages(sglang: Any, tokens: list[int], page: int, **more: Any) -> list[Any]:
    """As SGLang's cache records a store: one event for every page, names signed."""
    events, parent = [], None
    for start in range(0, len(tokens), page):
        name = -(start + 1)
        events.append(
            sglang.BlockStored(
                block_hashes=[name],
                parent_block_hash=parent,
                token_ids=tokens[start : start + page],
                block_size=page,
                lora_id=None,
                medium="GPU",
                **more,
            )
        )
        parent = name
    return events


def frame(sglang: Any, events: list[Any]) -> bytes:
    batch = sglang.KVEventBatch(ts=1.0, events=events, attn_dp_rank=0)
    return msgspec.msgpack.Encoder().encode(batch)


@pytest.mark.parametrize("mode", ["xxh3", "keyed"])
@pytest.mark.parametrize("page", [1, 16])
def test_a_stored_prompt_is_found_page_by_page(sglang: Any, mode: str, page: int) -> None:
    router, feed, tokens = wardrop.Router(page, hash=mode), EngineFeed(page), list(range(64))
    router.add_worker(1)
    applied, refused = feed.apply(router, 1, 0, frame(sglang, pages(sglang, tokens, page)))
    assert (applied, refused) == (64 // page, 0)
    assert router.find_matches(tokens) == {(1, 0): (64 // page, 0, 0)}
    last = sglang.BlockRemoved(block_hashes=[-(64 - page + 1)], medium="GPU")
    assert feed.apply(router, 1, 1, frame(sglang, [last])) == (1, 0)
    assert router.find_matches(tokens) == {(1, 0): (64 // page - 1, 0, 0)}
    feed.apply(router, 1, 2, frame(sglang, [sglang.AllBlocksCleared()]))
    assert router.find_matches(tokens) == {}


def test_salt_and_adapter_are_told_in_fields_of_their_own(sglang: Any) -> None:
    router, feed, tokens = wardrop.Router(16), EngineFeed(16), list(range(64))
    router.add_worker(1)
    events = pages(sglang, tokens, 16, cache_salt="tenant", lora_name="adapter", session_id="s")
    feed.apply(router, 1, 0, frame(sglang, events))
    held = {(1, 0): (4, 0, 0)}
    assert router.find_matches(tokens, lora_name="adapter", cache_namespace="tenant") == held
    assert router.find_matches(tokens, lora_name="adapter") == {}
    assert router.find_matches(tokens, cache_namespace="tenant") == {}
    assert router.find_matches(tokens) == {}


def test_tiers_are_counted_apart(sglang: Any) -> None:
    router, feed, tokens = wardrop.Router(16), EngineFeed(16), list(range(32))
    router.add_worker(1)
    stored = pages(sglang, tokens, 16)
    for event in stored:
        event.medium = "CPU_PINNED"
    feed.apply(router, 1, 0, frame(sglang, stored))
    assert router.find_matches(tokens) == {(1, 0): (0, 2, 0)}
    batch = decode_engine_batch(frame(sglang, stored))
    assert [event["tier"] for event in batch["events"]] == ["host", "host"]


def test_token_pairs_of_speculation_are_read_by_their_first(sglang: Any) -> None:
    router, feed, tokens = wardrop.Router(4), EngineFeed(4), list(range(8))
    router.add_worker(1)
    stored = pages(sglang, tokens, 4)
    for event in stored:
        event.token_ids = [(token, token + 1) for token in event.token_ids]
    assert feed.apply(router, 1, 0, frame(sglang, stored)) == (2, 0)
    assert router.find_matches(tokens) == {(1, 0): (2, 0, 0)}
