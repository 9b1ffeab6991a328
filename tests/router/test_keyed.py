"""Hashes under a key, prompts that grow, and what may not be mixed."""

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wardrop
from wardrop.engines import EngineFeed, apply_dynamo_message, decode_engine_batch

msgspec = pytest.importorskip("msgspec", reason="msgspec is not installed: no frame can be made")

TOKENS = list(range(1000, 1064))
NAMES = [11, 12, 13, 14]


def frame(tokens: list[int], names: list[int], parent: int | None = None, **more: Any) -> bytes:
    stored = {
        "type": "BlockStored",
        "block_hashes": names,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": 16,
        "lora_id": None,
        "medium": "GPU",
        **more,
    }
    return msgspec.msgpack.encode([1.5, [stored], 0])


def router(**options: Any) -> wardrop.Router:
    made = wardrop.Router(16, **options)
    made.add_worker(1)
    return made


@pytest.mark.parametrize("mode", ["xxh3", "keyed"])
def test_tokens_of_a_feed_meet_tokens_of_a_prompt_in_either_mode(mode: str) -> None:
    fleet = router(hash=mode)
    assert EngineFeed(16).apply(fleet, 1, 0, frame(TOKENS, NAMES)) == (1, 0)
    assert fleet.find_matches(TOKENS) == {(1, 0): (4, 0, 0)}
    assert fleet.find_matches([*TOKENS[:32], 7, *TOKENS[33:]]) == {(1, 0): (2, 0, 0)}
    assert fleet.find_matches(TOKENS, lora_name="other") == {}
    fleet.apply(1, wardrop.Removed([14]))
    assert fleet.find_matches(TOKENS) == {(1, 0): (3, 0, 0)}
    fleet.apply(1, wardrop.Stored([14], tokens=TOKENS[48:], block_size=16, parent=13))
    assert fleet.find_matches(TOKENS) == {(1, 0): (4, 0, 0)}


def test_routers_share_hashes_only_with_a_key_in_common() -> None:
    one, same, other = (router(hash="keyed", hash_key=key * 16) for key in (b"a", b"a", b"b"))
    prompt = one.prefix()
    prompt.extend(TOKENS)
    same.apply(1, wardrop.Stored(NAMES, tokens=TOKENS, block_size=16))
    assert same.find_matches(prompt) == {(1, 0): (4, 0, 0)}
    with pytest.raises(ValueError, match="expected one of router"):
        other.find_matches(prompt)
    with pytest.raises(ValueError, match="expected one of router"):
        router().route(prompt)


def test_hashes_of_dynamos_kind_are_refused_by_a_keyed_router() -> None:
    fleet = router(hash="keyed")
    hashes = wardrop.block_hashes(TOKENS, 16)
    refused = pytest.raises(ValueError, match="hashes under its own key")
    with refused:
        fleet.route(hashes=hashes)
    with refused:
        fleet.find_matches(hashes=hashes)
    with refused:
        fleet.apply(1, wardrop.Stored(NAMES, local_hashes=hashes))
    block = {"block_hash": 1, "tokens_hash": 2}
    with refused:
        fleet.apply(1, {"stored": {"parent_hash": None, "blocks": [block]}})
    with refused:
        apply_dynamo_message(fleet, [b"kv-events", bytes(8), bytes(8), b""])
    fleet.apply(1, {"cleared": None})


def test_a_wrong_hash_option_says_what_is_expected() -> None:
    with pytest.raises(ValueError, match="xxh3 or keyed"):
        router(hash="md5")
    with pytest.raises(ValueError, match="hash='keyed'"):
        router(hash_key=bytes(16))
    with pytest.raises((ValueError, TypeError)):
        router(hash="keyed", hash_key=b"short")
    assert "hash_key" not in repr(router(hash="keyed", hash_key=b"k" * 16))


@given(
    parts=st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=50), max_size=8),
    block_size=st.sampled_from([1, 4, 16, 61]),
)
def test_a_prompt_that_grows_equals_the_prompt_at_once(
    parts: list[list[int]], block_size: int
) -> None:
    prompt = wardrop.Prefix(block_size)
    for part in parts:
        prompt.extend(np.array(part, dtype=np.uint32))
    whole = [token for part in parts for token in part]
    assert prompt.block_hashes() == wardrop.block_hashes(whole, block_size)
    assert (prompt.tokens, prompt.blocks) == (len(whole), len(whole) // block_size)


def test_branches_of_a_session_grow_apart() -> None:
    fleet = router()
    stem = fleet.prefix()
    stem.extend(TOKENS[:40])
    branch = stem.copy()
    branch.extend(TOKENS[40:])
    stem.extend([5] * 24)
    fleet.apply(1, wardrop.Stored(NAMES, tokens=TOKENS, block_size=16))
    assert fleet.find_matches(branch) == {(1, 0): (4, 0, 0)}
    assert fleet.find_matches(stem) == {(1, 0): (2, 0, 0)}
    decision = fleet.route(branch, request_id="a")
    assert decision.overlap_blocks == 4
    assert fleet.snapshot()["workers"][0]["prefill_tokens"] == 0


def test_the_scope_of_a_prefix_is_given_where_it_is_made() -> None:
    fleet = router()
    with pytest.raises(ValueError, match="where the Prefix is made"):
        fleet.route(fleet.prefix(), lora_name="a")
    with pytest.raises(ValueError, match="a router's secret key"):
        router(hash="keyed").prefix().block_hashes()
    with pytest.raises(ValueError, match="block_size = 0"):
        wardrop.Prefix(0)


def test_a_feed_of_another_block_size_than_the_routers_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 16, the router's"):
        EngineFeed(32).apply(router(), 1, 0, frame(TOKENS, NAMES))


def test_a_batch_is_decoded_for_people() -> None:
    batch = decode_engine_batch(frame(TOKENS[:16], [7], 6, lora_name="a"))
    (event,) = batch["events"]
    assert (batch["at_s"], batch["dp_rank"]) == (1.5, 0)
    assert event["tokens"] == TOKENS[:16]
    assert (event["type"], event["block_hashes"], event["parent"]) == ("stored", [7], 6)
    assert (event["lora_name"], event["tier"], event["block_size"]) == ("a", "device", 16)
    with pytest.raises(ValueError, match="at most"):
        decode_engine_batch(bytes(9 << 20))
    with pytest.raises(ValueError, match="byte 0"):
        decode_engine_batch(b"\x01")


def dynamo_message(payload: Any, publisher: int = 5, sequence: int = 1) -> list[bytes]:
    inner = msgspec.msgpack.encode(payload)
    envelope = {
        "publisher_id": publisher,
        "sequence": sequence,
        "published_at": 0,
        "topic": "kv-events",
        "payload": inner,
    }
    body = msgspec.msgpack.encode(envelope)
    number = struct.Struct(">Q").pack
    head = b"\x01" + struct.pack(">I", len(body))
    return [b"kv-events", number(publisher), number(sequence), head + body]


def test_dynamos_events_reach_the_router() -> None:
    fleet = router()
    hashes = wardrop.block_hashes(TOKENS, 16)
    names = wardrop.sequence_hashes(hashes)
    blocks = [
        {"block_hash": name, "tokens_hash": local}
        for name, local in zip(names, hashes, strict=True)
    ]
    stored = {"stored": {"parent_hash": None, "blocks": blocks}}
    events = [
        {"worker_id": worker, "storage_tier": "device", "event": {"event_id": 1, "data": stored}}
        for worker in (1, 99)
    ]
    assert apply_dynamo_message(fleet, dynamo_message(events)) == (1, 0, 1)
    assert fleet.find_matches(TOKENS) == {(1, 0): (4, 0, 0)}
    orphan = {"stored": {"parent_hash": 12345, "blocks": blocks}}
    event = {"worker_id": 1, "event": {"event_id": 2, "data": orphan}}
    assert apply_dynamo_message(fleet, dynamo_message([event])) == (0, 1, 0)
    for wrong in ([b""], dynamo_message([])[:3], dynamo_message({"not": "a list"})):
        with pytest.raises(ValueError, match=r"frames|payload"):
            apply_dynamo_message(fleet, wrong)
