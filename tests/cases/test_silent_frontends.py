"""A frontend that accepts requests and says nothing: requests move, and streams end in time."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from tests.cases.test_streamed_answers import DONE, HEAD, TOKEN, chunk, whole
from tests.gateway.conftest import Seen, Upstream
from tests.waiting import DEADLINE_S, wait_until

MODELS = b'{"data":[{"id":"m"}]}'
ALIVE = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(MODELS), MODELS)


@pytest.fixture
def other() -> Iterator[Upstream]:
    up = Upstream()
    yield up
    up.close()


def answers_probes(script: Callable[[Seen, socket.socket], bytes | None]):
    """A script that answers probes, and gives the rest to another script."""
    return lambda seen, conn: ALIVE if b"/v1/models" in seen.head else script(seen, conn)


def posts(upstream: Upstream) -> int:
    return sum(seen.head.startswith(b"POST") for seen in upstream.seen)


def ask(running, results: list) -> threading.Thread:
    def send() -> None:
        results.append(running.complete([1, 2, 3, 4], stream=True))

    client = threading.Thread(target=send)
    client.start()
    return client


def test_request_moves_when_probes_fail(upstream, other, serve):
    silent = threading.Event()

    def says_nothing(seen, conn):
        silent.wait(DEADLINE_S)
        return

    upstream.script = says_nothing  # to probes, too
    other.script = answers_probes(lambda seen, conn: whole(TOKEN, DONE))
    running = serve(workers=(1,), upstream={"probe_interval_ms": 100})
    running.gateway.set_upstreams([upstream.url, other.url])
    results: list = []
    clients = [ask(running, results) for _ in range(6)]
    for client in clients:
        client.join(DEADLINE_S)
    silent.set()
    assert [status for status, _, _ in results] == [200] * 6
    assert posts(other) == 6


def test_request_moves_when_its_frontend_leaves_the_list(upstream, other, serve):
    gone = threading.Event()
    upstream.script = answers_probes(lambda seen, conn: gone.wait(DEADLINE_S) and None)
    other.script = answers_probes(lambda seen, conn: whole(TOKEN, DONE))
    running = serve(workers=(1,))
    results: list = []
    client = ask(running, results)
    wait_until(lambda: posts(upstream) == 1)
    running.gateway.set_upstreams([other.url])  # as the supervisor does with a silent frontend
    client.join(DEADLINE_S)
    gone.set()
    assert [status for status, _, _ in results] == [200]
    assert running.metric("retries_total", reason="upstream_silent") == 1


def test_stream_of_a_frontend_that_left_the_list_ends_with_an_error(upstream, other, serve):
    gone = threading.Event()

    def begins(seen, conn):
        conn.sendall(HEAD + chunk(TOKEN))
        gone.wait(DEADLINE_S)
        return b""

    upstream.script = answers_probes(begins)
    other.script = answers_probes(lambda seen, conn: whole(TOKEN, DONE))
    running = serve(workers=(1,), feed={"silence_ms": 200})
    results: list = []
    client = ask(running, results)
    wait_until(lambda: posts(upstream) == 1)
    running.gateway.set_upstreams([other.url])
    client.join(DEADLINE_S)
    gone.set()
    (_, _, body) = results[0]
    assert b"stream_stalled" in body or b"fell silent" in body
    wait_until(lambda: running.metric("worker_active_requests") == 0)
