"""Bodies of all calls together are bounded, over both protocols, and each has its time."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.select.conftest import Serve, Served
from tests.waiting import DEADLINE_S, wait_until

MEBIBYTE = 1 << 20


def connect(service: Served) -> socket.socket:
    host, _, port = service.url.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout=DEADLINE_S)


def head(length: int) -> bytes:
    return (
        b"POST /select HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % length
    )


def read_answer(client: socket.socket) -> tuple[int, dict[str, Any]]:
    response = http.client.HTTPResponse(client)
    response.begin()
    return response.status, json.loads(response.read())


def metric(service: Served, name: str) -> float:
    lines = service.server.metrics().splitlines()
    found = [line for line in lines if line.startswith(f"wardrop_{name}")]
    return sum(float(line.rpartition(" ")[2]) for line in found)


@contextlib.contextmanager
def unfinished(service: Served, count: int, size: int) -> Iterator[None]:
    """Calls whose bodies lack their last byte."""
    clients = [connect(service) for _ in range(count)]
    for client in clients:
        client.sendall(head(size + 1) + b" " * size)
    wait_until(lambda: metric(service, "request_body_bytes") >= count * size, "the bodies")
    try:
        yield
    finally:
        for client in clients:
            client.close()
    wait_until(lambda: metric(service, "request_body_bytes") == 0, "the end of the bodies")


def select(service: Served, tokens: int) -> tuple[int, dict[str, Any]]:
    body = json.dumps({"model_name": "m", "token_ids": [1] * tokens}).encode()
    with connect(service) as client:
        with contextlib.suppress(ConnectionError):  # a refusal may come before the last byte
            client.sendall(head(len(body)) + body)
        return read_answer(client)


def test_bodies_together_are_bounded_and_small_calls_still_pass(serve: Serve):
    with serve(all_bodies_bytes=16 * MEBIBYTE) as service:
        with unfinished(service, 3, 4 * MEBIBYTE - 1_000):
            status, error = select(service, 2 * MEBIBYTE)
            assert status == 503
            assert f"reach {16 * MEBIBYTE} bytes" in error["error"]
            assert select(service, 100)[0] == 200, "a quarter is left for small calls"
            with pytest.raises(grpc.RpcError) as refused:
                service.client.select("m", [1 << 27] * MEBIBYTE)
            assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert metric(service, "select_bodies_refused_total") == 2
        assert select(service, 2 * MEBIBYTE)[0] == 200


def test_body_that_grows_past_the_limit_is_refused_in_the_middle(serve: Serve):
    """A body without an announced length."""
    with serve(all_bodies_bytes=2 * MEBIBYTE) as service, connect(service) as client:
        client.sendall(
            b"POST /select HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
        with contextlib.suppress(ConnectionError):
            for _ in range(40):
                client.sendall(chunk)
        assert read_answer(client)[0] == 503


def test_body_that_stops_is_refused_in_time(serve: Serve):
    with serve(read_timeout_ms=300) as service, connect(service) as client:
        begun_s = time.monotonic()
        client.sendall(head(1_000) + b"{")
        status, error = read_answer(client)
        assert status == 408
        assert "300 ms" in error["error"]
        assert time.monotonic() - begun_s < DEADLINE_S
        wait_until(lambda: metric(service, "request_body_bytes") == 0, "the end of the body")


@pytest.mark.parametrize("name", ["all_bodies_bytes", "read_timeout_ms"])
def test_limit_of_nothing_is_refused(serve: Serve, name: str):
    with pytest.raises(ValueError, match=f"{name} must be 1 to"), serve(**{name: 0}):
        pass
