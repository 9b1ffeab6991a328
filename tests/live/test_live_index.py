"""The live price of anarchy on a real Dynamo with mock workers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.live.client import stream
from tests.live.router import Router, running
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]


def ask(router: Router, number: int) -> None:
    """A streamed completion: a shared head of 256 tokens out of four, and a tail of its own."""
    head = [300 + (number % 4) * 300 + i for i in range(256)]
    tail = [2000 + (number * 37 + i) % 5000 for i in range(64)]
    body = {
        "model": router.fleet.spec.model_name,
        "prompt": head + tail,
        "max_tokens": 16,
        "stream": True,
        "ignore_eos": True,
    }
    connection, lines = stream(router.url, "/v1/completions", body)
    assert any(b"[DONE]" in line for line in lines)
    connection.close()


def test_live_index_is_told_with_its_interval_and_its_errors_within_its_share_of_a_core():
    spec = FleetSpec(workers=3, process_per_worker=False)
    with Fleet(spec) as fleet, running(fleet, "--policy", "toll") as router:
        started_s = time.monotonic()
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(lambda number: ask(router, number), range(200)))
        wait_until(
            lambda: router.metrics().total("wardrop_decision_loss_windows") >= 2, "two windows"
        )
        elapsed_s = time.monotonic() - started_s
        metrics = router.metrics()

        def of(name: str, **labels: str) -> float:
            return metrics.total(f"wardrop_{name}", worker_type="aggregated", **labels)

        poa = of("decision_loss")
        assert 1.0 <= of("decision_loss_low") <= poa <= of("decision_loss_high") < 20
        assert of("price_of_anarchy_paper") > 2 * poa, "64 on 3 workers: the N/m artefact"
        for kind in ("ttft", "itl"):
            error = of("model_error_ratio", latency=kind)
            print(f"{kind}: error {error:.2f}, bias {of('model_bias_ratio', latency=kind):.2f}")
            assert 0.0 < error < 5.0
        spent_s = of("decision_loss_cpu_seconds_total")
        print(f"poa {poa:.3f}; {1e3 * spent_s:.1f} ms of CPU in {elapsed_s:.1f} s")
        # The share, and the credit that is spent before it binds.
        assert 0.0 < spent_s < 0.012 * elapsed_s + 0.03
        feeds = metrics.total("wardrop_kv_events_total", result="applied")
        assert feeds > 0, "the index must have stood on real events"
