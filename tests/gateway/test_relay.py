"""What the gateway does not decide about goes through as it came."""

import socket
import threading

from tests.waiting import DEADLINE_S

from wardrop._core import Gateway


def raw(port: int, request: bytes, until: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as conn:
        conn.sendall(request)
        got = b""
        while not got.endswith(until):
            data = conn.recv(65536)
            if not data:
                break
            got += data
    return got


def test_status_headers_and_body_pass_unchanged(upstream, serve):
    body = bytes(range(256)) * 300
    head = b"HTTP/1.1 418 I'm a teapot\r\nx-thing: a\r\nx-thing: b\r\ncontent-length: %d\r\n\r\n"
    upstream.script = lambda seen, conn: head % len(body) + body
    status, headers, got = serve().request("PUT", "/v1/files/path?q=1&r=%20", b"payload")
    assert (status, got) == (418, body)
    assert headers["x-thing"] in ("a", "b", "a, b")
    assert upstream.seen[0].head.startswith(b"PUT /v1/files/path?q=1&r=%20 HTTP/1.1\r\n")
    assert upstream.seen[0].body == b"payload"


def test_chunks_and_trailers_of_an_answer_survive(upstream, serve):
    upstream.script = lambda seen, conn: (
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
        b"3\r\nabc\r\n4;ext=1\r\ndefg\r\n0\r\nx-sum: 7\r\n\r\n"
    )
    got = raw(
        serve().port, b"GET /v1/models HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n", b"\r\n\r\n"
    )
    got_body = got.partition(b"\r\n\r\n")[2]
    assert b"".join(line for line in got_body.split(b"\r\n")[1::2]).startswith(b"abcdefg")
    assert b"x-sum: 7" in got


def test_answer_without_length_ends_with_the_connection(upstream, serve):
    def script(seen, conn):
        conn.sendall(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end")

    upstream.script = script
    assert serve().request("GET", "/v1/models")[2] == b"until the end"


def test_body_of_unknown_length_is_relayed_as_it_comes(upstream, serve):
    port = serve().port
    request = (
        b"POST /v1/files HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
        b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"
    )
    raw(port, request, b"{}")
    assert upstream.seen[0].header("transfer-encoding") == "chunked"
    assert b"hello" in upstream.seen[0].body
    assert b" world" in upstream.seen[0].body


def test_first_piece_of_a_stream_is_not_held_back(upstream, serve):
    first_arrived = threading.Event()

    def script(seen, conn):
        conn.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        for part in (b"data: 1\n\n", b"data: 2\n\n"):
            conn.sendall(b"%x\r\n%s\r\n" % (len(part), part))
            if not first_arrived.wait(DEADLINE_S):
                return None
        return b"0\r\n\r\n"

    upstream.script = script
    port = serve().port
    body = b'{"model":"m","prompt":[1,2,3,4],"stream":true}'
    request = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    first = raw(port, request + body, b"data: 1\n\n\r\n")
    first_arrived.set()
    assert b"data: 1" in first, "the upstream sends no more before the client has this piece"
    assert b"data: 2" not in first


def test_connection_that_the_upstream_closed_while_idle_is_replaced(upstream, serve):
    answers = iter([True, False, False])

    def script(seen, conn):
        conn.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        return None if next(answers) else b""

    upstream.script = script
    running = serve(worker_threads=1)
    assert running.complete([1, 2, 3, 4])[0] == 200
    assert running.complete([1, 2, 3, 4])[0] == 200


def test_upstream_that_refuses_is_passed_over_and_none_left_is_503(upstream, serve):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = f"http://127.0.0.1:{closed.getsockname()[1]}"
    running = serve()
    running.gateway.set_upstreams([dead, upstream.url])
    for _ in range(4):
        assert running.complete([1, 2, 3, 4])[0] == 200
    running.gateway.set_upstreams([dead])
    status, headers, body = running.complete([1, 2, 3, 4])
    assert status == 503
    assert b'"upstream_down"' in body
    assert headers["retry-after"] == "1"


def test_request_id_is_made_when_missing_and_kept_when_given(upstream, serve):
    running = serve()
    _, headers, _ = running.complete([1, 2, 3, 4])
    assert headers["x-request-id"] == upstream.seen[0].header("x-request-id")
    _, headers, _ = running.complete([1], headers={"x-request-id": "mine"})
    assert (headers["x-request-id"], upstream.seen[1].header("x-request-id")) == ("mine", "mine")


def test_stopped_gateway_releases_its_port(upstream, serve):
    running = serve()
    running.gateway.stop()
    again = Gateway(f'{{"listen": "127.0.0.1:{running.port}"}}')
    assert again.start() == running.port
    again.stop()
