"""A router that observes places no request, changes no byte, and still measures."""

import json

import pytest
from tests.waiting import wait_until

WORKER = "x-dynamo-worker-instance-id"
OBSERVING = {"policy": {"name": "toll"}, "observe": True, "bound_window_s": 1.0, "receipts": 10}
BODY = b'{ "model" : "m", "prompt":[1,2,3,4, 5,6,7,8 ], "unknown": {"x": 1.50} }'


@pytest.mark.parametrize("queue", [None, {}], ids=["at once", "behind a queue"])
def test_observed_request_goes_through_untouched_and_is_counted(upstream, serve, queue):
    running = serve(routing={**OBSERVING, "queue": queue})
    for _ in range(3):
        status, headers, _ = running.request("POST", "/v1/completions", BODY)
        assert status == 200
    for seen in upstream.seen:
        assert seen.header(WORKER) is None
        assert seen.body == BODY
    assert running.metric("abstentions_total", reason="observing") == 3
    assert running.metric("worker_active_requests", worker_id="1") == 0
    receipt = json.loads(running.gateway.receipt(headers["x-request-id"]))
    assert receipt["abstained"] == "observing"


def test_observed_requests_are_in_the_windows_of_the_price_of_anarchy(serve):
    running = serve(routing=OBSERVING)
    assert running.request("POST", "/v1/completions", BODY)[0] == 200
    # A window ended, and only the curves are missing: nothing has taught them here.
    wait_until(
        lambda: running.metric("price_of_anarchy_bound_missing", reason="no_curves") == 1,
        "a window that ended",
    )


def test_client_pins_stay_refused_while_the_router_observes(upstream, serve):
    running = serve(routing=OBSERVING)
    assert running.complete([1], headers={WORKER: "1"})[0] == 400
    assert not upstream.seen
