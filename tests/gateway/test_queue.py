"""Late binding in the gateway: wait for room, be cancelled, be refused with a time to come back."""

import http.client
import json
import threading
import time

import pytest

WORKER = "x-dynamo-worker-instance-id"


class Engines:
    """Answers when it is told to: each request's first token waits for a permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)

    def __call__(self, seen, conn):
        self.arrived.release()
        if not self.permits.acquire(timeout=20):
            return None
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture
def engines(upstream):
    held = Engines()
    upstream.script = held
    yield held
    for _ in range(200):
        held.permits.release()


def start(serve, **queue):
    routing = {"policy": {"name": "toll"}, "queue": queue, "queue_hints": True}
    return serve(workers=(1,), routing=routing)


def background(running, count, answers, headers=None):
    def ask():
        answers.append(running.complete(list(range(64)), headers=headers))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def wait_for(check, timeout_s=10.0):
    end = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end, "the expected state did not come"
        time.sleep(0.01)


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
    wait_for(lambda: running.metric("queue_requests") == 3)
    wait_for(lambda: upstream.seen)
    assert len(upstream.seen) == 1, "only one prompt may be on its way while there is no room"
    for _ in range(4):
        engines.permits.release()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in answers] == [200] * 4
    assert all(seen.header(WORKER) == "1" for seen in upstream.seen)
    waited = [int(headers["x-wardrop-queue-ms"]) for _, headers, _ in answers]
    assert max(waited) > 0
    assert running.metric("queue_placed_total", reason="room") == 4
    assert running.workers()[1]["active_requests"] == 0


def test_client_that_leaves_gives_up_its_place(upstream, serve, engines):
    running = start(serve, backlog_s=1e-9)
    answers: list = []
    threads = background(running, 1, answers)
    assert engines.arrived.acquire(timeout=10)
    conn = http.client.HTTPConnection("127.0.0.1", running.port)
    body = json.dumps({"model": "m", "prompt": list(range(8))})
    conn.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    wait_for(lambda: running.metric("queue_requests") == 1)
    conn.close()
    wait_for(lambda: running.metric("queue_requests") == 0)
    engines.permits.release()
    threads[0].join()
    assert len(upstream.seen) == 1
    assert running.workers()[1]["active_requests"] == 0


def test_full_queue_and_hopeless_deadline_get_429_with_retry_after(serve, engines):
    running = start(serve, backlog_s=1e-9, max_requests=2)
    answers: list = []
    threads = background(running, 3, answers)
    wait_for(lambda: running.metric("queue_requests") == 2)
    status, headers, body = running.complete([1, 2, 3, 4])
    assert status == 429
    assert int(headers["retry-after"]) >= 1
    assert json.loads(body)["error"]["code"] == "queue_full"
    for _ in range(3):
        engines.permits.release()
    for thread in threads:
        thread.join()
    hopeless = {"x-wardrop-deadline-ms": "0"}
    status, headers, _ = running.complete(list(range(64)), headers=hopeless)
    assert (status, "retry-after" in headers) == (429, True)


def test_lost_end_cannot_wedge_the_queue(upstream, serve, engines):
    running = start(serve, backlog_s=1e-9, max_wait_s=0.5)
    answers: list = []
    threads = background(running, 3, answers)
    # Nobody answers: those that wait are sent by their age.
    wait_for(lambda: len(upstream.seen) == 3)
    assert running.metric("queue_placed_total", reason="age") == 2
    for _ in range(3):
        engines.permits.release()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in answers] == [200] * 3


def test_bad_queue_configuration_is_refused_with_its_name(serve):
    with pytest.raises(ValueError, match=r"routing.queue: kappa"):
        start(serve, kappa=-1)
