"""Routers in front of one fleet: each prices the load of all, and none waits for another."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.chaos.severable import SeverableProxy
from tests.gateway.conftest import Running
from tests.waiting import wait_until

from wardrop._core import Gateway

WORKER = "x-dynamo-worker-instance-id"
WORKERS = (1, 2, 3, 4)


def peers(routers: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    """Settings of a router that others may follow."""
    fast = {"silence_ms": 60_000, "heartbeat_ms": 20}
    return {"listen": "127.0.0.1:0", "routers": list(routers)} | fast | options


def address(running: Running) -> str:
    """Address on which peers follow the router."""
    return running.status()["peer_address"]


def load(running: Running) -> dict[int, int]:
    """Requests in flight by worker, as the router prices them."""
    return {instance: worker["active_requests"] for instance, worker in running.workers().items()}


def requests_seen(running: Running) -> int:
    """Requests in flight on all workers, as the router prices them."""
    return sum(load(running).values())


def start_mesh(serve: Any, count: int, port_of: Any = None, **options: Any) -> list[Running]:
    """Routers that follow one another: each names all of them, itself included."""
    ports = [port_of() for _ in range(count)]
    named = tuple(f"127.0.0.1:{port}" for port in ports)
    return [
        serve(WORKERS, routing={"policy": {"name": "least_loaded"}}, peers=peers(named, listen=own))
        for own in named
    ]


@pytest.fixture
def free_port() -> Iterator[Any]:
    """Ports that nobody listens on; routers that name one another need them before the start."""
    import socket

    def take() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            return listener.getsockname()[1]

    return take


class Clients:
    """Requests that engines hold until the end of the test."""

    def __init__(self, engines: Any) -> None:
        self.engines = engines
        self.threads: list[threading.Thread] = []
        self.statuses: list[int] = []

    def send(self, running: Running, tokens: int = 64) -> None:
        """Send a request, and wait until it is at its engine."""

        def ask() -> None:
            self.statuses.append(running.complete(list(range(tokens)), stream=True)[0])

        thread = threading.Thread(target=ask)
        thread.start()
        self.threads.append(thread)
        assert self.engines.arrived.acquire(timeout=30)

    def finish(self) -> None:
        """Let every engine answer."""
        self.engines.finish(self.threads)
        assert set(self.statuses) == {200}


def placed(upstream: Any) -> Counter[str | None]:
    """Requests by the worker that they were pinned to."""
    return Counter(seen.header(WORKER) for seen in upstream.seen)


@pytest.mark.parametrize("count", [2, 4])
def test_burst_over_several_routers_spreads_as_over_one(serve, upstream, engines, free_port, count):
    routers = start_mesh(serve, count, free_port)
    wait_until(lambda: all(router.metric("peers_connected") == count - 1 for router in routers))
    clients = Clients(engines)
    for sent in range(1, 17):
        clients.send(routers[sent % count])
        # Staleness is what the bench measures; here every router has heard of every request.
        wait_until(lambda sent=sent: all(requests_seen(router) == sent for router in routers))
    assert placed(upstream) == {str(worker): 4 for worker in WORKERS}
    assert all(load(router) == dict.fromkeys(WORKERS, 4) for router in routers)
    assert all(router.metric("peer_streams_ended_total", reason="itself") for router in routers)
    clients.finish()
    wait_until(lambda: all(requests_seen(router) == 0 for router in routers))
    for router in routers:
        assert router.metric("peer_bookings") == 0
        assert router.metric("decisions_total") == 16 / count, "peers' requests are no decisions"


def test_without_peers_the_same_burst_meets_on_the_same_workers(serve, upstream, engines):
    routing = {"policy": {"name": "least_loaded"}}
    routers = [serve(WORKERS, routing=routing) for _ in range(4)]
    clients = Clients(engines)
    for router in routers:
        clients.send(router)
    assert max(placed(upstream).values()) > 1, "the negative control of the test above"
    clients.finish()


def test_queue_goes_on_when_a_peers_request_makes_room(serve, upstream, engines):
    first = serve((1,), peers=peers())
    queue = {"policy": {"name": "toll"}, "queue": {"backlog_s": 1e-9}}
    second = serve((1,), routing=queue, peers=peers((address(first),)))
    clients = Clients(engines)
    clients.send(first)
    wait_until(lambda: requests_seen(second) == 1)
    waiting = threading.Thread(target=lambda: second.complete([1, 2, 3, 4], stream=True))
    waiting.start()
    wait_until(lambda: second.metric("queue_requests") == 1)
    engines.permits.release()
    assert engines.arrived.acquire(timeout=30), "the end of the peer's request made room"
    clients.threads.append(waiting)
    engines.permits.release()
    for thread in clients.threads:
        thread.join()


ROUTER = """
import json, sys, threading, time
from wardrop._core import Gateway

gateway = Gateway(json.dumps({"listen": "127.0.0.1:0", "upstreams": [sys.argv[1]],
                              "peers": json.loads(sys.argv[2])}))
gateway.upsert_model(json.dumps({"name": "m", "block_size": 4, "context_length": 4096}))
for instance in (1, 2, 3, 4):
    gateway.upsert_worker(json.dumps({"model": "m", "role": "aggregated", "instance": instance}))
port = gateway.start()
print(json.dumps([port, json.loads(gateway.status())["peer_address"]]), flush=True)
time.sleep(600)
"""


@contextmanager
def router_process(upstream: Any, options: dict[str, Any]) -> Iterator[tuple[Any, int, str]]:
    """A router in a process of its own: the process, its port, and its address for peers."""
    command = [sys.executable, "-c", textwrap.dedent(ROUTER), upstream.url, json.dumps(options)]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        port, peer_address = json.loads(process.stdout.readline())
        yield process, port, peer_address
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_load_of_a_peer_that_is_killed_or_stopped_expires(serve, upstream, engines, fault):
    with router_process(upstream, peers()) as (process, port, peer_address):
        second = serve(WORKERS, peers=peers((peer_address,), silence_ms=500))
        clients = [threading.Thread(target=ask_and_forget, args=(port,)) for _ in range(3)]
        for client in clients:
            client.start()
        wait_until(lambda: requests_seen(second) == 3)
        process.send_signal(fault)
        wait_until(lambda: second.metric("peer_bookings_expired_total") == 3)
        assert requests_seen(second) == 0
        part = second.request("GET", "/health")
        health = json.loads(part[2])
        assert not health["control"]["peers"]["up"]
        assert peer_address in health["control"]["peers"]["error"]
        assert second.request("GET", "/ready")[0] == 200, "a router without peers serves"
        if fault == signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
            wait_until(lambda: requests_seen(second) == 3, "the snapshot of the peer that goes on")
    for client in clients:
        client.join()


def ask_and_forget(port: int) -> None:
    """Ask a router that may die."""
    import contextlib
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"model": "m", "prompt": list(range(64)), "stream": True})
    with contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        connection.getresponse().read()


@contextmanager
def severable(target: str) -> Iterator[Any]:
    """A proxy in front of a router's address for peers, on a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    host, port = target.split(":")

    def call(function: Any) -> Any:
        async def run() -> Any:
            made = function()
            return await made if asyncio.iscoroutine(made) else made

        future: Future[Any] = asyncio.run_coroutine_threadsafe(run(), loop)
        return future.result(30)

    proxy = SeverableProxy((host, int(port)))
    call(proxy.start)
    try:
        yield proxy, call
    finally:
        call(proxy.stop)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("way", ["silence", "cut"])
def test_peer_that_is_cut_off_delays_no_request_and_is_heard_again(serve, upstream, way):
    first = serve(WORKERS, peers=peers(outgoing_changes=16))
    with severable(address(first)) as (proxy, call):
        second = serve(
            WORKERS, peers=peers((f"127.0.0.1:{proxy.port}",), silence_ms=500, heartbeat_ms=50)
        )
        wait_until(lambda: second.metric("peers_connected") == 1)

        def slowest_s() -> float:
            took_s = []
            for number in range(100):
                started_s = time.monotonic()
                status, _, _ = (first, second)[number % 2].complete(list(range(256)))
                took_s.append(time.monotonic() - started_s)
                assert status == 200
            return sorted(took_s)[-2]

        before_s = slowest_s()
        call(proxy.silence if way == "silence" else proxy.cut)
        cut_s = slowest_s()
        # A request that waited for a peer would wait for silence_ms.
        assert cut_s < max(0.25, 10 * before_s)
        wait_until(lambda: second.metric("peer_streams_ended_total") >= 1)
        call(proxy.resume)
        wait_until(lambda: second.metric("peers_connected") == 1)
        wait_until(lambda: second.metric("peer_bookings") == 0)
        assert requests_seen(second) == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"listen": "here"}, 'peers: got "here", expected HOST:PORT'),
        ({"routers": ["a:70000"]}, 'peers: got "a:70000", expected HOST:PORT'),
        (
            {"silence_ms": 10, "heartbeat_ms": 10},
            "peers.heartbeat_ms must be below peers.silence_ms",
        ),
        ({"routers": ["a:1", "b:2"], "max_peers": 1}, "peers.routers: got 2 routers, at most 1"),
        ({"max_bookings": 0}, "peers.max_bookings must be 1 to"),
        ({"hash_blocks": 1 << 20}, "peers.hash_blocks must be 0 to 16384"),
        ({"size": 1}, "unknown field `size`"),
    ],
)
def test_options_that_cannot_work_are_refused_before_the_start(options, expected):
    with pytest.raises(ValueError, match=expected.replace(".", r"\.")):
        Gateway(json.dumps({"peers": options}))


def test_address_that_is_taken_is_named(serve):
    first = serve(peers=peers())
    with pytest.raises(RuntimeError, match=f"listening for peers on {address(first)}"):
        serve(peers=peers(listen=address(first)))
