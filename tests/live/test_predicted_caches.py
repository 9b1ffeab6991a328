"""`wardrop dynamo --predicted alone` in front of a real Dynamo without KV events."""

from __future__ import annotations

import random

import pytest
from tests.live.client import Answer
from tests.live.router import SPREADING, Router, cached_tokens, running

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]

BLOCKS = 32


def overlap(answer: Answer) -> int:
    return int(answer.headers["x-wardrop-overlap-blocks"])


def conversation(router: Router, turns: int, seed: int) -> tuple[int, int]:
    """Eight clients with prefixes that come again: cached tokens by the engines, blocks by us."""
    rng, size = random.Random(seed), router.fleet.spec.block_size
    heads = [rng.choices(range(300, 7000), k=BLOCKS * size) for _ in range(8)]
    cached, blocks = 0, 0
    for turn in range(turns):
        for head in heads:
            answer = router.complete([*head, *rng.choices(range(300, 7000), k=size)])
            assert answer.status == 200
            if turn:
                cached += cached_tokens(answer)
                blocks += overlap(answer)
    return cached, blocks


def test_prefixes_are_found_again_without_any_event():
    with Fleet(FleetSpec(workers=4, speedup_ratio=100, process_per_worker=False)) as fleet:
        front = fleet.add_frontend("kv")
        # Discovery by the frontend alone names no event channel: the feed is cut.
        without = ("--upstream", front.url, "--discovery", "frontend", "--block-size", "16")
        turns, of_turn = 4, 8 * BLOCKS * fleet.spec.block_size
        found = {}
        for used in ("off", "alone"):
            with running(fleet, *SPREADING, *without, "--predicted", used) as router:
                cached, blocks = conversation(router, turns, seed=len(used))
                metrics = router.metrics()
                assert metrics.total("wardrop_kv_events_total") == 0, "the cut must hold"
                assert metrics.total("wardrop_worker_held_blocks") == 0
                records = metrics.total("wardrop_predicted_records_inserted_total")
                assert records == (8 * turns if used == "alone" else 0)
                found[used] = cached / (of_turn * (turns - 1)), blocks
        print({used: f"{share:.2f} of the heads were cached" for used, (share, _) in found.items()})
        assert found["off"][1] == 0, "negative control: nothing is known"
        assert found["alone"][1] >= 0.95 * 8 * BLOCKS * (turns - 1)
        assert found["alone"][0] >= 0.95
        assert found["off"][0] < 0.8
