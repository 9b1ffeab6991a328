"""Messages on both sides follow RFC 9112: framing, fields of one connection, early answers."""

import socket
import threading

from tests.gateway.test_relay import raw
from tests.waiting import DEADLINE_S, wait_until

CLOSE = b"connection: close\r\n"


def completion(fields: bytes = b"", body: bytes = b'{"model":"m","prompt":[1,2,3,4]}') -> bytes:
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\n%scontent-length: %d\r\n\r\n"
    return head % (fields, len(body)) + body


def upload(size: int, fields: bytes = b"") -> bytes:
    head = b"POST /v1/files HTTP/1.1\r\nhost: a\r\n%scontent-length: %d\r\n\r\n"
    return head % (fields, size)


def read_all(conn: socket.socket) -> bytes:
    got = b""
    while data := conn.recv(65536):
        got += data
    return got


def test_coding_wins_over_a_length_beside_it(upstream, serve):
    upstream.script = lambda seen, conn: (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 30\r\n"
        b"transfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    )
    got = raw(serve().port, completion(CLOSE), b"never")
    head, _, body = got.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-length" not in head.lower()
    assert b"{}" in body


def test_answer_with_two_lengths_is_refused(upstream, serve):
    upstream.script = lambda seen, conn: (
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}"
    )
    status, _, body = serve().complete([1, 2, 3, 4])
    assert status == 502
    assert b"upstream_broken" in body


def test_fields_that_connection_names_stay_on_their_side(upstream, serve):
    upstream.script = lambda seen, conn: (
        b"HTTP/1.1 200 OK\r\nconnection: x-hop\r\nx-hop: 1\r\ncontent-length: 2\r\n\r\n{}"
    )
    fields = b"connection: close, x-secret\r\nx-secret: 1\r\nx-kept: 1\r\n"
    got = raw(serve().port, completion(fields), b"never")
    assert got.startswith(b"HTTP/1.1 200")
    assert b"x-hop" not in got
    assert upstream.seen[0].header("x-secret") is None
    assert upstream.seen[0].header("x-kept") == "1"


def test_error_answer_before_the_end_of_the_request_reaches_the_client(serve, early_upstream):
    """The upstream answers 413 and stops reading, on decided routes and on others."""
    running = serve(
        upstream={"first_byte_timeout_ms": 600_000}, prompt={"refuse_bytes_per_token": 0}
    )
    running.gateway.set_upstreams(
        [early_upstream(b"HTTP/1.1 413 Too\r\ncontent-length: 0\r\n\r\n")]
    )
    big = b'{"model":"m","prompt":"%s"}' % (b"x" * (12 << 20))
    for request in (completion(CLOSE, big), upload(len(big), CLOSE) + big):
        got = raw(running.port, request, b"never")
        assert got.startswith(b"HTTP/1.1 413"), got[:80]
    wait_until(lambda: running.metric("requests_in_flight") == 0)


def test_timeout_covers_an_upstream_that_takes_no_bytes(serve, early_upstream):
    running = serve(upstream={"first_byte_timeout_ms": 1_000}, prompt={"refuse_bytes_per_token": 0})
    running.gateway.set_upstreams([early_upstream(b"")])
    big = b'{"model":"m","prompt":"%s"}' % (b"x" * (12 << 20))
    for request in (completion(CLOSE, big), upload(len(big), CLOSE) + big):
        got = raw(running.port, request, b"never")
        assert got.startswith(b"HTTP/1.1 504"), got[:80]


def test_answer_that_begins_early_and_the_upload_go_on_side_by_side(upstream, serve):
    """A success that begins before the upload ends does not stop the upload."""
    got_all = threading.Event()
    size = 8 << 20

    def serve_one(listener: socket.socket) -> None:
        conn, _ = listener.accept()
        with conn:
            conn.recv(1)
            conn.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n")
            left = size
            while left > 0:
                left -= len(conn.recv(1 << 20))
            got_all.set()
            conn.sendall(b"2\r\ncd\r\n0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve_one, args=(listener,), daemon=True).start()
        running = serve()
        running.gateway.set_upstreams([f"http://127.0.0.1:{listener.getsockname()[1]}"])
        with socket.create_connection(("127.0.0.1", running.port), timeout=DEADLINE_S) as client:
            client.sendall(upload(size, CLOSE))
            head = client.recv(65536)
            assert head.startswith(b"HTTP/1.1 200"), "the answer does not wait for the upload"
            client.sendall(b"y" * size)
            assert b"cd" in read_all(client)
    assert got_all.is_set()


def test_error_answer_is_readable_while_the_client_still_sends(upstream, serve):
    """The gateway refuses at the head; the client sends all of its body before it reads."""
    running = serve(limits={"body_bytes": 1_000})
    size = 8 << 20
    with socket.create_connection(("127.0.0.1", running.port), timeout=DEADLINE_S) as client:
        client.sendall(completion(b"", b"z" * size))
        got = read_all(client)
    assert got.startswith(b"HTTP/1.1 413"), got[:80]
    assert b"connection: close" in got.lower()


def test_client_that_leaves_is_seen_behind_pipelined_bytes(upstream, serve, engines):
    """The end of the connection ends the request, regardless of bytes that wait in it."""
    running = serve()
    rest = (b"", completion(), b"POST /v1/co", b"\r\n")
    for extra in rest:
        clients = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(5)]
        for client in clients:
            client.sendall(completion() + extra)
        wait_until(lambda: running.metric("requests_in_flight") == 5, "five requests in flight")
        for _ in clients:
            assert engines.arrived.acquire(timeout=DEADLINE_S)
        for client in clients:
            client.close()
        wait_until(
            lambda: running.metric("requests_in_flight") == 0,
            f"the end of clients that sent {extra[:12]!r} after their request",
        )
        booked = sum(worker["active_requests"] for worker in running.workers().values())
        assert booked == 0


def test_client_that_closes_its_sending_side_counts_as_gone(upstream, serve, engines):
    running = serve()
    with socket.create_connection(("127.0.0.1", running.port), timeout=DEADLINE_S) as client:
        client.sendall(completion())
        assert engines.arrived.acquire(timeout=DEADLINE_S)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    wait_until(lambda: running.metric("requests_in_flight") == 0)


def test_requests_in_one_packet_are_answered_in_order(upstream, serve):
    upstream.script = lambda seen, conn: (
        b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(seen.body), seen.body)
    )
    first, second = b'{"model":"m","prompt":[1]}', b'{"model":"m","prompt":[2,3]}'
    got = raw(serve().port, completion(b"", first) + completion(CLOSE, second), b"never")
    assert 0 < got.index(first) < got.index(second)
