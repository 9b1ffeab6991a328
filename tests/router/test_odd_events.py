"""Engine events that differ from the usual form: each event is judged alone."""

from typing import Any

import pytest

import wardrop
from wardrop.engines import EngineFeed, decode_engine_batch

msgspec = pytest.importorskip("msgspec", reason="msgspec is not installed: no frame can be made")

TOKENS = list(range(1000, 1064))
"""Four blocks of 16 tokens."""


def stored(hashes: list[Any], tokens: Any, **fields: Any) -> dict[str, Any]:
    event = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": None}
    event |= {"token_ids": tokens, "block_size": 16, "lora_id": None, "medium": "GPU"}
    return event | fields


def removed(hashes: list[int], **fields: Any) -> dict[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", **fields}


USUAL = stored([1, 2, 3, 4], TOKENS)


class Engine:
    """A router with worker 1, and the feed of that worker."""

    def __init__(self) -> None:
        self.router, self.feed, self.sequence = wardrop.Router(16), EngineFeed(16), 0
        self.router.add_worker(1)

    def send(self, *events: Any, batch: Any = None) -> None:
        payload = msgspec.msgpack.encode([1.0, list(events), 0] if batch is None else batch)
        self.feed.apply(self.router, 1, self.sequence, payload)
        self.sequence += 1

    def held(self, lora_name: str | None = None) -> tuple[int, int, int]:
        return self.router.find_matches(TOKENS, lora_name=lora_name).get((1, 0), (0, 0, 0))


@pytest.fixture
def engine() -> Engine:
    return Engine()


def group(number: int, kind: str | None) -> dict[str, Any]:
    return {"group_idx": number, "kv_cache_spec_kind": kind}


def test_attention_counts_in_any_group_beside_sparse_mamba_groups(engine: Engine) -> None:
    sparse = [stored([91 + at], TOKENS, **group(at, "mamba")) for at in range(3)]
    engine.send(*sparse, stored([1, 2, 3, 4], TOKENS, **group(3, "mla_attention")))
    assert engine.held() == (4, 0, 0)
    assert (engine.feed.counters["skipped"], engine.feed.counters["unusable"]) == (3, 0)


@pytest.mark.parametrize("kind", ["full_attention", "mla_attention", "sink_full_attention"])
def test_attention_outside_group_0_counts_and_its_removals_do_too(
    engine: Engine, kind: str
) -> None:
    engine.send(stored([1, 2, 3, 4], TOKENS, **group(1, kind)))
    assert engine.held() == (4, 0, 0)
    engine.send(removed([4], group_idx=1), removed([1, 2], group_idx=0))
    assert engine.held() == (3, 0, 0), "a group that never stored attention removes nothing"


@pytest.mark.parametrize("kind", ["sliding_window", "mamba", "chunked_local_attention", "new_kind"])
def test_other_kinds_are_no_prefix_even_in_group_0(engine: Engine, kind: str) -> None:
    engine.send(stored([1, 2, 3, 4], TOKENS, **group(0, kind)))
    assert engine.held() == (0, 0, 0)


def test_window_group_with_the_same_hashes_removes_nothing_of_the_attention_group(
    engine: Engine,
) -> None:
    attention = stored([1, 2, 3, 4], TOKENS, **group(0, "full_attention"))
    engine.send(attention, stored([1, 2], TOKENS, **group(1, "sliding_window")))
    engine.send(removed([1, 2], group_idx=1))
    assert engine.held() == (4, 0, 0)


def test_groups_beyond_the_limit_are_stepped_over(engine: Engine) -> None:
    engine.send(*[stored([900 + at], TOKENS, **group(at, "mamba")) for at in range(64)])
    engine.send(stored([1, 2, 3, 4], TOKENS, **group(64, "full_attention")))
    assert engine.held() == (0, 0, 0)


@pytest.mark.parametrize("block_size", [0, 16, None])
@pytest.mark.parametrize("tokens", [[], None])
def test_stored_event_without_tokens_is_a_copy_in_another_memory(
    engine: Engine, block_size: int | None, tokens: list[int] | None
) -> None:
    copy = stored([1, 2, 3, 4], tokens, block_size=block_size, medium="CPU")
    engine.send(USUAL, copy)
    assert engine.held() == (4, 0, 0)
    engine.send(removed([1, 2, 3, 4]))
    assert engine.held() == (0, 4, 0), "the copies in host memory stay"
    engine.send(removed([1, 2, 3, 4], medium="CPU"))
    assert engine.held() == (0, 0, 0)


def test_copy_of_unknown_blocks_is_stepped_over(engine: Engine) -> None:
    engine.send(stored([7, 8], [], medium="CPU"), USUAL)
    assert engine.held() == (4, 0, 0)
    engine.router.add_worker(2)
    payload = msgspec.msgpack.encode([1.0, [stored([1, 2], [], medium="CPU")], 0])
    EngineFeed(16).apply(engine.router, 2, 0, payload)
    assert (2, 0) not in engine.router.find_matches(TOKENS), "a copy is a copy of its own worker"


@pytest.mark.parametrize(
    "odd",
    [
        stored([9], TOKENS[:16], extra_keys=[[1.5]]),
        stored([9], TOKENS[:16], extra_keys=[[True]]),
        stored([9], TOKENS[:16], extra_keys=[[{"a": 1}]]),
        stored([9], [-1] * 16),
        stored([9], TOKENS[:16], block_size=None),
        stored([9], TOKENS[:16], block_size="16"),
        stored([9, 10, 11, 12], TOKENS[:60], parent_block_hash=4),
        stored([1.5], TOKENS[:16]),
        stored([[1]], TOKENS[:16]),
        stored([9], TOKENS[:16], medium=3),
        stored([9], TOKENS[:16], lora_name=["a"]),
        stored([9], TOKENS[:16], group_idx="0"),
        {"type": "BlockStored", "token_ids": TOKENS},
        {"type": "BlockStored", "block_hashes": [9]},
        {"type": "BlockRemoved"},
        {"type": "BlockRemoved", "block_hashes": "all"},
        {"type": 7},
        "text",
        None,
        1.5,
    ],
    ids=lambda odd: repr(odd)[:60],
)
def test_odd_event_costs_only_itself(engine: Engine, odd: Any) -> None:
    engine.send(odd, USUAL, odd)
    assert engine.held() == (4, 0, 0)
    assert engine.feed.counters["unusable"] == 2
    assert engine.feed.counters["malformed"] == 0


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("extra", [{"x": {"a": 1.5}}, {"x": deep(300)}, {7: 8}])
def test_unknown_events_and_fields_are_skipped(engine: Engine, extra: dict[Any, Any]) -> None:
    engine.send({"type": "New", **extra}, USUAL | extra, [], [["a"], 1], ["New", deep(200)])
    assert engine.held() == (4, 0, 0)
    assert (engine.feed.counters["skipped"], engine.feed.counters["unusable"]) == (4, 0)


@pytest.mark.parametrize(
    "batch",
    [
        {"ts": 1.0, "events": [USUAL], "data_parallel_rank": 3},
        {"events": [USUAL], "attn_dp_rank": 3, "more": {}, "ts": 1},
        [1.0, [USUAL], 3],
        [None, [USUAL], 3, "more"],
        ["now", [USUAL], 3],
    ],
    ids=repr,
)
def test_batch_may_be_an_array_or_a_map(engine: Engine, batch: Any) -> None:
    engine.send(batch=batch)
    assert engine.held() == (4, 0, 0)
    assert decode_engine_batch(msgspec.msgpack.encode(batch))["dp_rank"] == 3


@pytest.mark.parametrize("rank", [None, "3", -1, 1 << 40, 1.5])
def test_rank_that_is_no_rank_is_unknown(rank: Any) -> None:
    assert decode_engine_batch(msgspec.msgpack.encode([1.0, [], rank]))["dp_rank"] is None


@pytest.mark.parametrize("time", [None, "now", float("nan"), float("inf")])
def test_time_that_is_no_time_is_unknown(time: Any) -> None:
    assert decode_engine_batch(msgspec.msgpack.encode([time, [], 0]))["at_s"] is None


@pytest.mark.parametrize("lora_id", [3, "3", 0])
def test_adapter_with_a_number_only_is_not_the_base_model(engine: Engine, lora_id: Any) -> None:
    engine.send(stored([1, 2, 3, 4], TOKENS, lora_id=lora_id))
    assert engine.held() == (0, 0, 0)
    assert engine.feed.counters["skipped"] == 1


def test_adapter_with_a_name_is_found_by_its_name(engine: Engine) -> None:
    fields: dict[str, Any] = {"lora_id": 3, "lora_name": "ad", "extra_keys": [["ad"]] * 4}
    engine.send(stored([1, 2, 3, 4], TOKENS, **fields))
    assert engine.held() == (0, 0, 0)
    assert engine.held(lora_name="ad") == (4, 0, 0)
