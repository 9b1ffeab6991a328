"""Long prompts have threads of their own, and hold up neither small ones nor name resolution."""

import json
import socket
import time

import pytest
from tests.gateway.conftest import Running
from tests.waiting import DEADLINE_S, wait_until

from wardrop.dynamo.model_folder import model_folder

MEBIBYTE = 1 << 20
WAIT_FOR_EVER = {"tokenise_timeout_ms": 600_000}


def with_tokeniser(running: Running) -> Running:
    """Give model `m` a tokeniser, and a context in which every prompt fits."""
    running.gateway.upsert_model(
        json.dumps(
            {
                "name": "m",
                "folder": str(model_folder()),
                "block_size": 4,
                "context_length": 4_000_000_000,
            }
        )
    )
    return running


def prompt(size: int) -> bytes:
    return b'{"model":"m","prompt":"%s"}' % (b"one two " * (size // 8))


def send(running: Running, body: bytes) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", running.port), timeout=DEADLINE_S)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n"
    client.sendall(head % len(body) + body)
    return client


def large_ones_run(running: Running, bodies: list[bytes]) -> list[socket.socket]:
    """Clients with large prompts, of which one is being tokenised and the others wait."""
    clients = [send(running, body) for body in bodies]
    wait_until(
        lambda: running.metric("prompts_waiting") == len(bodies) - 1,
        "one large prompt at work, the others behind it",
    )
    return clients


def leave(running: Running, clients: list[socket.socket]) -> None:
    for client in clients:
        client.close()
    wait_until(lambda: running.metric("requests_in_flight") == 0)


def test_small_prompts_pass_large_ones(upstream, serve):
    running = with_tokeniser(serve(prompt=WAIT_FOR_EVER))
    clients = large_ones_run(running, [prompt(24 * MEBIBYTE)] * 3)
    for _ in range(20):
        assert running.request("POST", "/v1/completions", prompt(20_000))[0] == 200
    assert running.metric("requests_in_flight") == 3, "the large ones are not done before"
    assert running.metric("abstentions_total", reason="tokenise_timeout") == 0
    leave(running, clients)


def test_prompts_of_clients_that_left_do_not_run(upstream, serve):
    running = with_tokeniser(serve(prompt=WAIT_FOR_EVER))
    clients = large_ones_run(running, [prompt(24 * MEBIBYTE)] * 4)
    leave(running, clients[1:] + clients[:1])
    assert running.metric("prompts_abandoned_total") == 4, "three that waited, one that ran"
    assert running.metric("prompts_waiting") == 0
    assert running.metric("request_body_bytes") == 0


def test_name_of_an_upstream_is_resolved_beside_the_prompts(upstream, serve):
    running = with_tokeniser(serve(prompt=WAIT_FOR_EVER))
    running.gateway.set_upstreams([upstream.url.replace("127.0.0.1", "localhost")])
    clients = large_ones_run(running, [prompt(24 * MEBIBYTE)] * 3)
    for _ in range(10):
        assert running.complete([1, 2, 3, 4])[0] == 200
    leave(running, clients)


@pytest.mark.heavy
def test_two_prompts_of_44_mb_beside_small_requests(upstream, serve, capsys):
    running = with_tokeniser(serve(prompt=WAIT_FOR_EVER))
    clients = large_ones_run(running, [prompt(44 * 10**6)] * 2)
    took_s = []
    for number in range(400):
        started_s = time.monotonic()
        size = 20_000 if number % 2 else 200
        assert running.request("POST", "/v1/completions", prompt(size))[0] == 200
        took_s.append(time.monotonic() - started_s)
    took_s.sort()
    with capsys.disabled():
        print(f"p50 {took_s[200] * 1e3:.1f} ms, p99 {took_s[396] * 1e3:.1f} ms of small requests")
    assert took_s[-1] < 5, (
        "the stall beside prompts of 44 MB in a router without such a pool is 51 s"
    )
    leave(running, clients)
