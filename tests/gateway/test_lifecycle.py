"""A booking lives from decision to end, however the request ends."""

import http.client
import json
import os
import subprocess
import sys
import threading
import time

from tests.waiting import DEADLINE_S, wait_until

CANARY_TEXT = "canary-8f31e7"
CANARY_TOKEN = 913_577_131

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def test_load_falls_with_the_first_token_and_ends_with_the_stream(upstream, serve):
    steps = [threading.Event(), threading.Event(), threading.Event()]

    def script(seen, conn):
        steps[0].wait(DEADLINE_S)
        conn.sendall(STREAM_HEAD + b"9\r\ndata: 1\n\n\r\n")
        steps[1].wait(DEADLINE_S)
        conn.sendall(b"0\r\n\r\n")
        return b""

    upstream.script = script
    running = serve(workers=(1,))
    client = threading.Thread(
        target=running.complete, args=([1, 2, 3, 4, 5],), kwargs={"stream": True}
    )
    client.start()
    wait_until(lambda: upstream.seen)
    worker = running.workers()[1]
    assert (worker["prefill_tokens"], worker["active_requests"]) == (5, 1)
    steps[0].set()
    wait_until(lambda: running.workers()[1]["prefill_tokens"] == 0)
    assert running.workers()[1]["active_requests"] == 1
    steps[1].set()
    client.join()
    wait_until(lambda: running.workers()[1]["active_requests"] == 0)
    assert running.status()["in_flight"] == 0


def test_client_that_leaves_cancels_upstream_and_releases(upstream, serve):
    def script(seen, conn):
        conn.sendall(STREAM_HEAD)
        while True:
            conn.sendall(b"9\r\ndata: 1\n\n\r\n")
            time.sleep(0.02)

    upstream.script = script
    running = serve(workers=(1,))
    conn = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    body = json.dumps({"model": "m", "prompt": [1, 2, 3, 4], "stream": True})
    conn.request("POST", "/v1/completions", body)
    conn.getresponse().read1(10)
    assert running.workers()[1]["active_requests"] == 1
    conn.close()
    assert upstream.closed_early.wait(DEADLINE_S), "the upstream must see the connection close"
    wait_until(lambda: running.workers()[1]["active_requests"] == 0)
    assert running.metric("client_disconnects_total") == 1


def test_client_that_leaves_before_the_first_byte_releases_too(upstream, serve):
    gate = threading.Event()
    upstream.script = lambda seen, conn: gate.wait(DEADLINE_S) and b""
    running = serve(workers=(1,))
    conn = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    conn.request("POST", "/v1/completions", json.dumps({"model": "m", "prompt": [1, 2, 3, 4]}))
    wait_until(lambda: running.workers()[1]["active_requests"] == 1)
    conn.close()
    wait_until(lambda: running.workers()[1]["active_requests"] == 0)
    assert running.status()["in_flight"] == 0
    gate.set()


def test_booking_that_nobody_ends_expires(upstream, serve):
    gate = threading.Event()
    upstream.script = lambda seen, conn: gate.wait(DEADLINE_S) and None
    running = serve(workers=(1,), routing={"booking_ttl_s": 0.5})
    client = threading.Thread(target=running.complete, args=([1, 2, 3, 4],))
    client.start()
    wait_until(lambda: running.workers()[1]["active_requests"] == 1)
    wait_until(lambda: running.metric("bookings_expired_total") == 1)
    assert running.workers()[1]["active_requests"] == 0
    gate.set()
    client.join()


def test_reported_cached_tokens_are_compared_with_the_prediction(upstream, serve):
    body = json.dumps(
        {"usage": {"prompt_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}}
    ).encode()
    upstream.script = lambda seen, conn: (
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )
    running = serve(workers=(1,))
    assert running.complete([1, 2, 3, 4])[2] == body
    wait_until(lambda: running.workers()[1]["audited_requests"] == 1)
    assert running.workers()[1]["reported_cached_tokens"] == 3
    assert running.workers()[1]["cached_tokens_absolute_error"] == 3
    assert running.metric("cached_tokens_reported_total", worker_id="1") == 3


def test_drain_lets_requests_finish_and_takes_no_new_ones(upstream, serve):
    gate = threading.Event()

    def script(seen, conn):
        gate.wait(DEADLINE_S)
        return b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ndone"

    upstream.script = script
    running = serve()
    results = []
    client = threading.Thread(target=lambda: results.append(running.complete([1, 2, 3, 4])))
    client.start()
    wait_until(lambda: upstream.seen)
    idle = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    idle.connect()
    assert running.gateway.drain(0.2) is False, "one request is in flight"
    gate.set()
    assert running.gateway.drain(DEADLINE_S) is True
    client.join()
    assert (results[0][0], results[0][2]) == (200, b"done")
    assert running.status()["draining"] is True
    idle.close()


def test_no_prompt_token_or_salt_leaves_in_logs_metrics_or_status():
    """Also at the finest log level, and also when everything fails."""
    code = f"""
import http.client, json
from wardrop._core import Gateway
g = Gateway(json.dumps({{"listen": "127.0.0.1:0", "upstreams": ["http://127.0.0.1:9"],
                        "log": "trace"}}))
g.upsert_model(json.dumps({{"name": "m", "block_size": 4}}))
g.upsert_worker(json.dumps({{"model": "m", "role": "aggregated", "instance": 1}}))
port = g.start()
turn = {{"role": "user", "content": "{CANARY_TEXT}"}}
for path, body in (
    ("completions", {{"model": "m", "prompt": [{CANARY_TOKEN}], "cache_salt": "{CANARY_TEXT}"}}),
    ("completions", {{"model": "m", "prompt": "{CANARY_TEXT}"}}),
    ("chat/completions", {{"model": "m", "messages": [turn]}}),
    ("chat/completions", "{CANARY_TEXT} is not json"),  # 400: it may hide a pin
):
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    data = body if isinstance(body, str) else json.dumps(body)
    conn.request("POST", "/v1/" + path, data, {{"authorization": "Bearer {CANARY_TEXT}"}})
    answer = conn.getresponse()
    assert answer.status == (503 if isinstance(body, dict) else 400), answer.status
    print(answer.read())
print(g.metrics(), g.status())
g.stop()
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "gateway serves" in done.stderr, "the log must be on for this to prove anything"
    assert CANARY_TEXT not in done.stdout + done.stderr
    assert str(CANARY_TOKEN) not in done.stdout + done.stderr
