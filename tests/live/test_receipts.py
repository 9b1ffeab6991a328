"""The receipt of a decision on a real Dynamo: what the router thought, and what the engine said."""

from __future__ import annotations

import json
import random
from urllib.request import urlopen

import pytest
from tests.live.router import cached_tokens, instance, running, served_by
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]


def test_receipt_tells_both_legs_and_the_engines_own_word_of_the_cache():
    port = free_port()
    arguments = ("--policy", "toll", "--queue", "--receipts", "16")
    arguments += ("--admin-port", str(port))
    spec = FleetSpec(workers=2, speedup_ratio=100, process_per_worker=False)

    def receipt(request_id: str) -> dict:
        with urlopen(f"http://127.0.0.1:{port}/v1/receipts/{request_id}", timeout=10) as answer:
            return json.load(answer)

    with Fleet(spec) as fleet, running(fleet, *arguments) as router:
        prompt = random.Random(5).choices(range(300, 7000), k=32 * spec.block_size)
        first = router.complete_and_learn(prompt)
        wait_until(
            lambda: "wardrop_control_regime" in router.metrics().names(),
            "the controller's first look",
        )
        body = {
            "model": spec.model_name,
            "prompt": [*prompt, *range(400, 400 + spec.block_size)],
            "max_tokens": 4,
            "nvext": {"extra_fields": ["worker_id"]},
        }
        again = router.post("/v1/completions", body, x_request_id="again")
        assert (again.status, instance(again)) == (200, instance(first))
        wait_until(lambda: receipt("again")["outcome"], "the end of the answer to be noted")
        found = receipt("again")
        [leg] = found["legs"]
        assert leg["worker"]["instance"] == instance(again) == served_by(again)[1]
        assert leg["candidates_in_all"] == 2
        assert leg["margin"] >= 0
        held = {c["worker"]["instance"]: c["device_blocks"] for c in leg["candidates"]}
        assert held[instance(again)] >= 32
        assert min(held.values()) == 0
        assert (leg["cause"], found["routing"]["queue"]["kappa"]) == ("room", 10.0)
        assert found["regime"] == "below"
        assert found["queued_s"] == pytest.approx(
            int(again.headers["x-wardrop-queue-ms"]) / 1e3, abs=1e-3
        )
        outcome = found["outcome"]
        assert (outcome["how"], outcome["status"]) == ("finished", 200)
        assert outcome["cached_tokens"] == cached_tokens(again) >= 32 * spec.block_size
        assert outcome["predicted_cached_tokens"] == leg["overlap_blocks"] * spec.block_size
        assert 0 < outcome["ttft_s"] <= outcome["e2e_s"]
