"""`--observe`: Dynamo chooses every worker, and the router measures the choices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.live.router import running

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = pytest.mark.live

WINDOW = ("--control-bound-window-s", "1")


@pytest.mark.parametrize("mode", ["kv", "round-robin"])
def test_price_of_anarchy_of_dynamos_own_routing_is_live(private_network: None, mode: str) -> None:
    """The engines' reports teach the curves, so no placement of the router is needed."""
    with Fleet(FleetSpec(workers=2, process_per_worker=False)) as fleet:
        fleet.add_frontend(mode)
        with running(fleet, "--observe", *WINDOW, "--upstream", fleet.frontends[0].url) as router:

            def ask(number: int) -> int:
                prompt = [300 + (number * 31 + at) % 4_000 for at in range(200)]
                body = {"model": "tiny", "prompt": prompt, "max_tokens": 8, "stream": True}
                return router.post("/v1/completions", {**body, "ignore_eos": True}).status

            def priced() -> float:
                name = "wardrop_price_of_anarchy_bound_requests"
                return router.metrics().total(name, latency="e2e")

            asked = 0
            with ThreadPoolExecutor(8) as clients:
                while priced() < 32:
                    assert set(clients.map(ask, range(asked, asked + 16))) == {200}
                    asked += 16
                    assert asked < 2_000, "windows must have a bound once the curves have learned"
            metrics = router.metrics()
            assert metrics.total("wardrop_abstentions_total", reason="observing") == asked
            assert metrics.total("wardrop_decisions_total") == 0
            assert metrics.total("wardrop_price_of_anarchy_bound", latency="e2e") > 0.8
