"""Verdicts on canaries, for engines that no mock worker plays: each fails for the right reason."""

from __future__ import annotations

from typing import Any

import pytest

from wardrop.doctor import canary
from wardrop.doctor.canary import (
    CANARY_BLOCKS,
    Sent,
    check_blocks,
    check_destination,
    check_isolation,
    check_pin,
    check_tokens,
)
from wardrop.doctor.facts import Model

MODEL = Model("m", 16, 4096, [], True, True, True, None, [], [])
FULL = CANARY_BLOCKS * 16


def sent(predicted: int = 0, reported: int | None = 0, worker: int = 1, served: Any = 1) -> Sent:
    answer = {"nvext": None}
    if served is not None:
        ids = {"prefill_worker_id": served, "decode_worker_id": served}
        answer = {"nvext": {"worker_id": ids}}
    outcome = {"predicted_cached_tokens": predicted, "cached_tokens": reported}
    leg = {"worker": {"instance": worker, "dp_rank": 0}}
    return Sent(answer, {"abstained": None, "legs": [leg], "outcome": outcome})


@pytest.mark.parametrize(
    ("second", "heard", "level", "text"),
    [
        (sent(FULL, FULL), True, "ok", "128 cached tokens predicted, 128 reported"),
        (sent(FULL, FULL - 16), True, "ok", "112 reported"),
        (sent(0, FULL), True, "failure", "hashes do not match: block size, salt or hash seed"),
        (sent(0, FULL), False, "failure", "no KV event came"),
        (sent(0, 0), False, "failure", "nothing is cached after the first canary, and no KV event"),
        (sent(0, 0), True, "failure", "although events came"),
        (sent(FULL, 0), True, "failure", "expected 128 within 16"),
        (sent(FULL, FULL // 2), True, "failure", "64 reported"),
        (sent(FULL // 4, FULL), True, "failure", "32 cached tokens predicted"),
        (sent(FULL, None), True, "skipped", "128 cached tokens predicted; the engine reports none"),
        (sent(0, 0, worker=2), True, "warning", "went to another worker"),
        (sent(0, 0, worker=2), False, "failure", "sent no KV event"),
    ],
)
def test_blocks(second, heard, level, text):
    finding = check_blocks(MODEL, sent(), second, heard)
    assert (finding.level, text in finding.text) == (level, True), finding


def test_blocks_of_a_new_prompt_are_never_cached():
    finding = check_blocks(MODEL, sent(predicted=16), sent(FULL, FULL), heard=True)
    assert finding.level == "failure"
    assert "predicted for a new prompt" in finding.text


def test_pin():
    assert check_pin(MODEL, sent(worker=1, served=1)).level == "ok"
    other = check_pin(MODEL, sent(worker=1, served=2))
    assert (other.level, "chosen worker 1, served by 2" in other.text) == ("failure", True)
    silent = check_pin(MODEL, sent(served=None))
    assert (silent.level, "ignores nvext" in silent.text) == ("failure", True)


@pytest.mark.parametrize(
    ("moved", "has_feeds", "level", "text"),
    [
        ({(1, 0)}, True, "ok", "worker 1/0 was chosen and served"),
        ({(1, 0), (2, 0)}, True, "ok", "1/0"),
        ({(2, 0)}, True, "failure", "chosen worker 1/0, blocks stored by 2/0: the proxy ignores"),
        (set(), True, "warning", "no worker sent a KV event"),
        (set(), False, "skipped", "without KV events"),
    ],
)
def test_destination(moved, has_feeds, level, text):
    finding = check_destination(MODEL, sent(worker=1), moved, has_feeds)
    assert (finding.level, text in finding.text) == (level, True), finding


@pytest.mark.parametrize(
    ("ours", "theirs", "level", "text"),
    [
        (17, 17, "ok", "router and engine count 17 tokens"),
        (17, 18, "failure", "the router counts 17 tokens in a text, the engine 18"),
        (17, None, "skipped", "reports no count"),
    ],
)
def test_tokens(ours, theirs, level, text):
    one = sent()
    one.counted, one.engine_counted = ours, theirs
    finding = check_tokens(MODEL, one)
    assert (finding.level, text in finding.text) == (level, True), finding


@pytest.mark.parametrize("name", ["salt", "lora"])
def test_isolation(name):
    assert check_isolation(name, MODEL, sent(), "another salt").level == "ok"
    engine = check_isolation(name, MODEL, sent(0, 96), "another salt")
    assert (engine.level, "shares its cache" in engine.text) == ("warning", True)
    index = check_isolation(name, MODEL, sent(96, 0), "another salt")
    assert (index.level, "index predicts 96" in index.text) == ("failure", True)


def test_prompts_are_new_each_time_and_end_within_a_block():
    prompts = [canary.new_prompt(16) for _ in range(3)]
    assert len({tuple(prompt[:16]) for prompt in prompts}) == 3
    assert {len(prompt) for prompt in prompts} == {FULL + 8}
