"""Every wait on a client ends, and a client that waits does not keep others out."""

import http.client
import json
import socket
import threading

import pytest
from tests.waiting import DEADLINE_S, wait_until

LARGE_ANSWER = 64 << 20
"""More than the socket buffers of both sides hold."""


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)


def read_answer(client: socket.socket) -> tuple[int, bytes]:
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, response.read()


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/files", "/v1/audio/transcriptions"])
def test_body_that_stops_is_408_on_every_route(upstream, serve, path):
    running = serve(limits={"read_timeout_ms": 300})
    with connect(running.port) as client:
        head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc"
        client.sendall(head.encode())
        status, body = read_answer(client)
        assert (status, json.loads(body)["error"]["code"]) == (408, "read_timeout")
        assert client.recv(1) == b"", "the connection ends, since the rest of the body is missing"
    wait_until(lambda: running.metric("requests_in_flight") == 0)


def test_head_that_stops_is_408(serve):
    running = serve(limits={"read_timeout_ms": 300})
    with connect(running.port) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-slow: ")
        status, body = read_answer(client)
        assert (status, json.loads(body)["error"]["code"]) == (408, "read_timeout")
    assert running.metric("client_timeouts_total", wait="head") == 1


def test_client_that_still_sends_its_head_reads_the_whole_408(serve):
    """Bytes that come after the close would reset the connection."""
    running = serve(limits={"read_timeout_ms": 300})
    with connect(running.port) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-slow: ")
        wait_until(lambda: running.metric("client_timeouts_total", wait="head") == 1)
        got = client.recv(65536)
        for _ in range(3):
            client.sendall(b"a")  # after a close, the first byte has a reset as its answer
        while data := client.recv(65536):
            got += data
        assert got.startswith(b"HTTP/1.1 408")
        assert got.endswith(b"}")


def test_head_in_single_bytes_does_not_extend_its_deadline(serve):
    running = serve(limits={"read_timeout_ms": 500})
    with connect(running.port) as client:
        client.settimeout(0.05)
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nx-slow: ")
        got = b""

        def answered() -> bool:
            nonlocal got
            try:
                client.sendall(b"a")
                got += client.recv(65536)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            return b"408" in got

        wait_until(answered, "the end of a head that comes byte by byte")
    assert running.metric("client_timeouts_total", wait="head") == 1


def test_unused_connection_closes_after_the_idle_time(serve):
    running = serve(limits={"idle_timeout_ms": 300})
    with connect(running.port) as client:
        assert client.recv(1) == b""
    assert running.metric("client_timeouts_total", wait="idle") == 1
    wait_until(lambda: running.metric("client_connections") == 0)


def test_connection_that_is_used_outlives_the_idle_time(upstream, serve, engines):
    """The wait for an answer is no idleness."""
    running = serve(limits={"idle_timeout_ms": 200, "read_timeout_ms": 200})
    body = b'{"model":"m","prompt":[1,2,3,4]}'
    with connect(running.port) as held, connect(running.port) as unused:
        request = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s"
        held.sendall(request % (len(body), body))
        assert engines.arrived.acquire(timeout=DEADLINE_S)
        assert unused.recv(1) == b"", "the idle time of a connection beside it has passed"
        engines.permits.release()
        assert read_answer(held)[0] == 200


@pytest.mark.parametrize("kind", ["application/octet-stream", "text/event-stream"])
def test_client_that_never_reads_loses_its_connection_and_frees_its_place(upstream, serve, kind):
    def endless(seen, conn):
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {LARGE_ANSWER}\r\n\r\n"
        conn.sendall(head.encode())
        conn.sendall(b"data: xxxxxxx\n\n\n" * (LARGE_ANSWER // 16))
        return b""

    upstream.script = endless
    running = serve(limits={"write_timeout_ms": 500, "concurrent_requests": 3})
    body = b'{"model":"m","prompt":[1,2,3,4],"stream":true}'
    clients = [connect(running.port) for _ in range(3)]
    for client in clients:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
        client.sendall(head % len(body) + body)
    wait_until(lambda: running.metric("client_timeouts_total", wait="write") == 3)
    wait_until(lambda: running.metric("requests_in_flight") == 0)
    wait_until(upstream.closed_early.is_set, "the end of the work upstream")
    upstream.script = lambda seen, conn: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    assert running.complete([1, 2, 3, 4])[0] == 200
    for client in clients:
        client.close()


def test_client_that_reads_slowly_gets_its_whole_answer(upstream, serve):
    size = 8 << 20
    upstream.script = lambda seen, conn: (
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + b"y" * size
    )
    running = serve(limits={"write_timeout_ms": 2_000})
    with connect(running.port) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)
        body = b'{"model":"m","prompt":[1,2,3,4]}'
        head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        got = 0
        while data := client.recv(32 << 10):
            got += len(data)
    assert got > size
    assert running.metric("client_timeouts_total", wait="write") == 0


def test_bodies_together_are_bounded_and_small_ones_still_pass(upstream, serve):
    """Unfinished large bodies fill their share of the sum; the next large one is refused."""
    mebibyte = 1 << 20
    running = serve(limits={"all_bodies_bytes": 16 * mebibyte, "body_bytes": 8 * mebibyte})
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
    clients = [connect(running.port) for _ in range(2)]
    for client in clients:
        client.sendall(head % (6 * mebibyte) + b"x" * (5 * mebibyte))
    wait_until(lambda: running.metric("request_body_bytes") == 10 * mebibyte)
    with connect(running.port) as refused:
        refused.sendall(head % (4 * mebibyte))
        status, body = read_answer(refused)
    assert (status, json.loads(body)["error"]["code"]) == (503, "bodies_full")
    assert running.complete([1, 2, 3, 4])[0] == 200
    for client in clients:
        client.close()
    wait_until(lambda: running.metric("request_body_bytes") == 0, "the bytes of clients that left")


def test_announced_bytes_that_never_come_take_no_memory(upstream, serve):
    running = serve(
        limits={"all_bodies_bytes": 16 << 20, "body_bytes": 8 << 20},
        prompt={"refuse_bytes_per_token": 0},
    )
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
    clients = [connect(running.port) for _ in range(20)]
    for client in clients:
        client.sendall(head % (8 << 20))
    wait_until(lambda: running.metric("requests_in_flight") == 20)
    large = b'{"model":"m","prompt":"%s"}' % (b"x" * (4 << 20))
    assert running.request("POST", "/v1/completions", large)[0] == 200
    for client in clients:
        client.close()


@pytest.mark.heavy
def test_slow_clients_of_every_kind_leave_the_gateway_usable(upstream, serve):
    """4,096 clients: a quarter each without a request, in a head, in a body, not reading."""
    zeros = bytes(LARGE_ANSWER)

    def large(seen, conn):
        conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % LARGE_ANSWER)
        conn.sendall(zeros)
        return b""

    running = serve(
        limits={"connections": 5_000, "read_timeout_ms": 60_000, "write_timeout_ms": 60_000}
    )
    completion = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%s"
    body = b'{"model":"m","prompt":[1,2,3,4]}'
    beginnings = [b"", b"POST /v1/comp", completion % (1_000, b"{"), completion % (len(body), body)]
    upstream.script = large
    clients = []
    for number in range(4_096):
        client = socket.create_connection(("127.0.0.1", running.port), timeout=DEADLINE_S)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.sendall(beginnings[number % 4])
        clients.append(client)
    wait_until(lambda: running.metric("requests_in_flight") == 2_048)
    upstream.script = lambda seen, conn: b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(running.complete([1, 2])[0]))
        for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 50
    for client in clients:
        client.close()
    wait_until(lambda: running.metric("requests_in_flight") == 0)
    wait_until(lambda: running.metric("client_connections") == 0)
