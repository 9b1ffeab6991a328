"""Planted lies between an engine's cache and its events: found by the answers, forgiven after."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fleet.engine import BLOCK_TOKENS, Engine
from tests.waiting import wait_until

FOUND_WITHIN = 8
"""Requests with a shared prefix after which a lie is found."""
FORGIVEN_WITHIN = 60
"""Requests with a shared prefix after which an honest engine is believed again."""


def prompt(number: int) -> list[int]:
    """A prompt with a shared prefix of 8 blocks, and a block of its own."""
    own = [100_000 + 1_000 * number + at for at in range(BLOCK_TOKENS + 3)]
    return [*range(1, 8 * BLOCK_TOKENS + 1), *own]


def lost(_event: dict[str, Any]) -> None:
    """No event reaches the router, and no number is missing."""


def other_tokeniser(event: dict[str, Any]) -> dict[str, Any]:
    ids = event.get("token_ids")
    return event | {"token_ids": [token + 7 for token in ids]} if ids else event


def other_salt(event: dict[str, Any]) -> dict[str, Any]:
    blocks = len(event["block_hashes"])
    return event | {"extra_keys": [["a salt of the engine"]] * blocks}


def other_block_size(event: dict[str, Any]) -> dict[str, Any]:
    """Blocks of 8 tokens, of which every second one is named."""
    if event["type"] != "BlockStored":
        return event
    ids = event["token_ids"]
    blocks = [ids[at : at + 8] for at in range(0, len(ids), BLOCK_TOKENS)]
    return event | {"block_size": 8, "token_ids": [token for block in blocks for token in block]}


def serve(router: Any, engine: Engine, number: int) -> tuple[str, int]:
    """Serve one prompt to the end: the trust mode after it, and the blocks that were believed."""
    answer = router.complete(prompt(number))
    assert answer[0] == 200
    served = number + 1
    wait_until(
        lambda: router.worker(engine)["audited_requests"] >= served, "the comparison of the answer"
    )
    receipt = router.receipt(answer)
    (candidate,) = receipt["legs"][0]["candidates"]
    return router.worker(engine)["trust_mode"], candidate["device_blocks"]


@pytest.mark.parametrize("lie", [lost, other_tokeniser, other_salt, other_block_size])
def test_lie_of_the_events_is_found_and_an_honest_engine_is_believed_again(route, engines, lie):
    engine = engines()
    engine.lie = lie
    router = route(engine)
    modes = [serve(router, engine, number)[0] for number in range(FOUND_WITHIN)]
    assert modes[0] == "exact"
    assert "degraded" in modes, modes
    assert router.metric("worker_trust_mode", mode="exact") == 0
    assert router.metric("worker_trust_ratio") < 0.8

    engine.lie = None
    engine.reset_cache()
    wait_until(lambda: router.worker(engine)["held_blocks"][0] == 0, "an empty index")
    number = FOUND_WITHIN
    while router.worker(engine)["trust_mode"] != "exact":
        assert number < FOUND_WITHIN + FORGIVEN_WITHIN, router.worker(engine)
        serve(router, engine, number)
        router.await_index(engine)
        number += 1
    assert serve(router, engine, number) == ("exact", 8)
    assert router.metric("worker_trust_mode", mode="exact") == 1


def test_ghosts_are_found_and_no_longer_believed(route, engines):
    engine = engines()
    engine.events.has_replay = False
    router = route(engine)
    assert serve(router, engine, 0)[0] == "exact"
    router.await_index(engine)
    modes, believed = [], []
    for number in range(1, 2 + FOUND_WITHIN):
        with engine.lock:
            engine.cache.clear()
        mode, blocks = serve(router, engine, number)
        modes.append(mode)
        believed.append(blocks)
    assert believed[0] == 8, "the first ghost is believed"
    assert modes[-1] != "exact", modes
    assert believed[-1] < 8, believed
    assert router.worker(engine)["trust_found_share"] < 0.5
