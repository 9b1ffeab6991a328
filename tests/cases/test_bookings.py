"""Bookings live as long as their requests, and waits end when nothing can come any more."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time

from tests.cases.test_streamed_answers import DONE, HEAD, TOKEN, chunk
from tests.gateway.held import background, waits
from tests.gateway.test_feeds import FPM
from tests.waiting import DEADLINE_S, wait_until

TTL_S = 1.0
PACE_S = 0.05


def test_stream_that_outlives_the_expiry_keeps_its_booking(upstream, serve):
    checked = threading.Event()

    def script(seen, conn: socket.socket) -> bytes:
        conn.sendall(HEAD)
        while not checked.is_set():
            conn.sendall(chunk(TOKEN))
            time.sleep(PACE_S)  # the pace of an engine
        conn.sendall(chunk(DONE) + b"0\r\n\r\n")
        return b""

    upstream.script = script
    running = serve(workers=(1,), routing={"booking_ttl_s": TTL_S})
    client = threading.Thread(
        target=running.complete, args=([1, 2, 3, 4],), kwargs={"stream": True}
    )
    client.start()
    wait_until(lambda: running.metric("inter_token_latency_seconds_count") > 3 * TTL_S / PACE_S)
    assert running.workers()[1]["active_requests"] == 1
    assert running.metric("bookings_expired_total") == 0
    checked.set()
    client.join()
    wait_until(lambda: running.workers()[1]["active_requests"] == 0)


def test_silent_prefill_worker_ends_no_stream_whose_prefill_is_over(upstream, serve, publish):
    token = threading.Event()

    def script(seen, conn: socket.socket) -> bytes:
        conn.sendall(HEAD + chunk(TOKEN))
        token.wait(DEADLINE_S)
        conn.sendall(chunk(TOKEN) + chunk(DONE) + b"0\r\n\r\n")
        return b""

    upstream.script = script
    running = serve(workers=(), feed={"silence_ms": 300})
    for role, instance in (("prefill", 1), ("decode", 2)):
        worker = {"model": "m", "role": role, "instance": instance}
        running.gateway.upsert_worker(json.dumps(worker))
    publisher = publish(6, FPM)
    publisher.follow(running.gateway, role="prefill")
    publisher.await_subscription()
    publisher.heartbeat(1)
    wait_until(lambda: running.workers("prefill")[1]["heartbeat_age_s"] is not None)
    answers: list = []
    client = threading.Thread(
        target=lambda: answers.append(running.complete([1, 2, 3, 4], stream=True))
    )
    client.start()
    wait_until(lambda: running.metric("time_to_first_token_seconds_count") == 1)
    wait_until(lambda: running.workers("prefill")[1]["fault"] == "silent")
    silent_s = time.monotonic()
    wait_until(lambda: time.monotonic() - silent_s > 1.0)  # several looks at the stream
    token.set()
    client.join()
    ((status, _, body),) = answers
    assert (status, body.count(b"data: {")) == (200, 2)
    assert body.endswith(DONE)


def test_requests_that_wait_go_on_at_once_when_the_last_worker_leaves(upstream, serve, engines):
    queue = {"backlog_s": 1e-9, "max_wait_s": 600.0}
    running = serve(workers=(1,), routing={"queue": queue})
    answers: list = []
    threads = background(running, 3, answers)
    waits(running, 2)
    wait_until(lambda: len(upstream.seen) == 1)
    running.gateway.remove_worker("m", "aggregated", 1)
    wait_until(lambda: len(upstream.seen) == 3, "the engine's frontend says that no worker is left")
    assert [seen.header("x-dynamo-worker-instance-id") for seen in upstream.seen[1:]] == [None] * 2
    engines.finish(threads)
    assert running.metric("queue_requests") == 0


def test_client_that_leaves_while_the_queue_is_switched_off_leaves_no_booking(
    upstream, serve, engines
):
    running = serve(workers=(1,))
    for _ in range(10):
        running.gateway.set_routing('{"queue": {"backlog_s": 1e-9}}')
        answers: list = []
        threads = background(running, 1, answers)
        assert engines.arrived.acquire(timeout=DEADLINE_S)
        conn = http.client.HTTPConnection("127.0.0.1", running.port)
        body = json.dumps({"model": "m", "prompt": list(range(8))})
        conn.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        waits(running, 1)
        leaving = threading.Thread(target=conn.close)
        leaving.start()
        running.gateway.set_routing('{"queue": null}')
        leaving.join()
        for _ in range(2):
            engines.permits.release()
        for thread in threads:
            thread.join()
        wait_until(lambda: running.metric("requests_in_flight") == 0)
        wait_until(lambda: running.workers()[1]["active_requests"] == 0)
        while engines.arrived.acquire(blocking=False):
            pass
        while engines.permits.acquire(blocking=False):
            pass
