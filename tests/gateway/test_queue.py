"""Late binding in the gateway: wait for room, be cancelled, be refused with a time to come back."""

import http.client
import json

import pytest
from tests.gateway.held import background, waits
from tests.waiting import wait_until

WORKER = "x-dynamo-worker-instance-id"


def start(serve, **queue):
    routing = {"policy": {"name": "toll"}, "queue": queue, "queue_hints": True}
    return serve(workers=(1,), routing=routing)


def test_idle_queue_places_at_once_and_says_so(upstream, serve):
    running = start(serve)
    status, headers, _ = running.complete([1, 2, 3, 4])
    assert status == 200
    assert headers["x-wardrop-queue-ms"] == "0"
    assert upstream.seen[0].header(WORKER) == "1"
    assert running.metric("queue_placed_total", reason="room") == 1
    assert running.metric("queue_requests") == 0


def test_request_waits_until_its_worker_has_room(upstream, serve, engines):
    running = start(serve, backlog_s=1e-9)
    answers: list = []
    threads = background(running, 4, answers)
    waits(running, 3)
    wait_until(lambda: upstream.seen)
    assert len(upstream.seen) == 1, "only one prompt may be on its way while there is no room"
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 4
    assert all(seen.header(WORKER) == "1" for seen in upstream.seen)
    waited = [int(headers["x-wardrop-queue-ms"]) for _, headers, _ in answers]
    assert max(waited) > 0
    assert running.metric("queue_placed_total", reason="room") == 4
    assert running.workers()[1]["active_requests"] == 0


def test_answer_in_one_piece_does_not_close_its_worker_until_its_end(upstream, serve, engines):
    running = start(serve, backlog_s=1e-9)
    answers: list = []
    threads = background(running, 3, answers, stream=False)
    # No engine has answered: each goes out once the prefill before it is expected to be over.
    wait_until(lambda: len(upstream.seen) == 3)
    assert running.metric("queue_placed_total", reason="room") == 3
    assert running.workers()[1]["prefill_tokens"] <= 64
    assert running.workers()[1]["active_requests"] == 3
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 3


def test_client_that_leaves_gives_up_its_place(upstream, serve, engines):
    running = start(serve, backlog_s=1e-9)
    answers: list = []
    threads = background(running, 1, answers)
    assert engines.arrived.acquire(timeout=10)
    conn = http.client.HTTPConnection("127.0.0.1", running.port)
    body = json.dumps({"model": "m", "prompt": list(range(8))})
    conn.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    waits(running, 1)
    conn.close()
    waits(running, 0)
    engines.permits.release()
    threads[0].join()
    assert len(upstream.seen) == 1
    assert running.workers()[1]["active_requests"] == 0


def test_full_queue_and_hopeless_deadline_get_429_with_retry_after(serve, engines):
    running = start(serve, backlog_s=1e-9, max_requests=2)
    answers: list = []
    threads = background(running, 3, answers)
    waits(running, 2)
    status, headers, body = running.complete([1, 2, 3, 4])
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert json.loads(body)["error"]["code"] == "queue_full"
    engines.finish(threads)
    hopeless = {"x-wardrop-deadline-ms": "0"}
    status, headers, _ = running.complete(list(range(64)), headers=hopeless)
    assert (status, "retry-after" in headers) == (429, True)


def test_lost_end_cannot_wedge_the_queue(upstream, serve, engines):
    running = start(serve, backlog_s=1e-9, max_wait_s=0.5)
    answers: list = []
    threads = background(running, 3, answers)
    # No engine answers: waiting requests are placed by their age.
    wait_until(lambda: len(upstream.seen) == 3)
    assert running.metric("queue_placed_total", reason="age") == 2
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 3


def test_bad_queue_configuration_is_refused_with_its_name(serve):
    with pytest.raises(ValueError, match=r"routing.queue: kappa"):
        start(serve, kappa=-1)
