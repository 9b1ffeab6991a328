"""Each limit has an answer in OpenAI's shape, and every answer is counted."""

import http.client
import json
import socket
import threading

import pytest
from tests.gateway.conftest import OK
from tests.waiting import DEADLINE_S, wait_until

from wardrop._core import Gateway


def code_of(body: bytes) -> str:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["code"]


def test_body_above_the_limit_is_413(upstream, serve):
    running = serve(limits={"body_bytes": 1000})
    status, _, body = running.request("POST", "/v1/completions", b"x" * 5_000)
    assert (status, code_of(body)) == (413, "body_too_large")
    assert not upstream.seen
    assert running.metric("refusals_total", error_code="body_too_large") == 1


def test_headers_above_the_limit_are_431(serve):
    running = serve(limits={"header_bytes": 500})
    status, _, body = running.complete([1], headers={"x-long": "v" * 600})
    assert (status, code_of(body)) == (431, "headers_too_large")


def test_body_that_never_comes_is_408(serve):
    running = serve(limits={"read_timeout_ms": 200})
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as conn:
        conn.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\n{")
        response = http.client.HTTPResponse(conn)
        response.begin()
        assert (response.status, code_of(response.read())) == (408, "read_timeout")


def test_request_above_the_limit_is_429_and_says_when_to_come_back(upstream, serve):
    gate = threading.Event()

    def script(seen, conn):
        gate.wait(DEADLINE_S)
        return b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"

    upstream.script = script
    running = serve(limits={"concurrent_requests": 1})
    held = threading.Thread(target=running.complete, args=([1],))
    held.start()
    wait_until(lambda: upstream.seen)
    status, headers, body = running.complete([1])
    assert (status, code_of(body), headers["retry-after"]) == (429, "too_many_requests", "1")
    gate.set()
    held.join()
    upstream.script = lambda seen, conn: b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    assert running.complete([1])[0] == 200


def test_upstream_that_says_nothing_is_504(upstream, serve):
    answered = threading.Event()
    upstream.script = lambda seen, conn: answered.wait(DEADLINE_S) and None
    running = serve(upstream={"first_byte_timeout_ms": 500})
    status, _, body = running.complete([1])
    answered.set()
    assert (status, code_of(body)) == (504, "first_byte_timeout")


def test_upstream_that_breaks_off_is_502(upstream, serve):
    upstream.script = lambda seen, conn: None
    running = serve()
    status, _, body = running.complete([1])
    assert (status, code_of(body)) == (502, "upstream_broken")
    assert len(upstream.seen) == 2, "one second attempt"
    wait_until(lambda: running.metric("worker_active_requests") == 0)


def test_request_whose_upstream_breaks_off_before_a_byte_is_sent_once_more(upstream, serve):
    upstream.script = lambda seen, conn: OK if len(upstream.seen) > 1 else None
    running = serve()
    assert running.complete([1])[0] == 200
    assert running.metric("retries_total", reason="upstream_broke") == 1


def test_stream_that_falls_silent_ends_with_an_error_event(upstream, serve):
    answered = threading.Event()

    def script(seen, conn):
        conn.sendall(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n"
        )
        answered.wait(DEADLINE_S)

    upstream.script = script
    running = serve(upstream={"idle_timeout_ms": 500})
    status, _, body = running.complete([1, 2, 3, 4], stream=True)
    answered.set()
    assert status == 200
    first, second, _ = body.split(b"\n\n")
    assert first == b"data: 1"
    assert code_of(second.removeprefix(b"data: ")) == "stream_stalled"
    assert running.metric("broken_streams_total", error_code="stream_stalled") == 1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"listne": "x"}', "listne"),
        ('{"limits": {"body_bytes": 0}}', "limits.body_bytes"),
        ('{"upstreams": ["ftp://x"]}', "ftp://x"),
        ('{"routing": {"policy": {"name": "nonsense"}}}', "nonsense"),
        ('"text"', "configuration"),
    ],
)
def test_wrong_configuration_names_its_fault(config, says):
    with pytest.raises(ValueError, match=says):
        Gateway(config)


def test_control_calls_say_what_is_wrong(serve):
    gateway = serve().gateway
    with pytest.raises(ValueError, match="not registered"):
        gateway.upsert_worker('{"model": "none", "role": "prefill", "instance": 1}')
    with pytest.raises(ValueError, match="dp_size"):
        gateway.upsert_worker(
            '{"model": "m", "role": "aggregated", "instance": 1, "dp_size": 20000}'
        )
    with pytest.raises(ValueError, match="role must be"):
        gateway.remove_worker("m", "router", 1)
    with pytest.raises(ValueError, match="dump_events"):
        gateway.load_dump("m", "aggregated", "{}")
    with pytest.raises(RuntimeError, match="runs already"):
        gateway.start()
