"""`GET /dump`: the blocks of the index, beside the dump of Dynamo's own selection service."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.fleet.engine import BLOCK_TOKENS, Events
from tests.live.conftest import private_network as private_network
from tests.picker.processes import Process, call
from tests.select.conftest import Serve, Served
from tests.waiting import wait_until

from wardrop.dynamo.ports import free_port

TOKENS = list(range(5 * BLOCK_TOKENS))


def stored(
    names: list[int], parent: int | None, first_block: int, medium: str = "GPU"
) -> dict[str, Any]:
    """An engine's event: blocks of `TOKENS` from the given block on."""
    start = first_block * BLOCK_TOKENS
    return {
        "type": "BlockStored",
        "block_hashes": names,
        "parent_block_hash": parent,
        "token_ids": TOKENS[start : start + len(names) * BLOCK_TOKENS],
        "block_size": BLOCK_TOKENS,
        "lora_id": None,
        "medium": medium,
        "lora_name": None,
    }


EVENTS = [
    stored([11, 12, 13], None, 0),
    stored([14], 13, 3),
    stored([25], 12, 4),
    stored([14], 13, 3, medium="CPU"),
]
"""A prompt of four blocks, a branch after two, and the fourth block in host memory too."""


def worker(number: int, events: Events, **fields: Any) -> dict[str, Any]:
    return {
        "worker_id": number,
        "model_name": "m",
        "endpoint": f"http://w{number}",
        "block_size": BLOCK_TOKENS,
        "kv_events_endpoints": {"0": f"tcp://127.0.0.1:{events.events_port}"},
        "replay_endpoint": f"tcp://127.0.0.1:{events.replay_port}",
        **fields,
    }


def blocks(dump: Any, pool: str) -> set[tuple[Any, ...]]:
    """Every stored block of a dump with its worker, tier and parent, however the runs are cut."""
    assert dump[pool]["block_size"] == BLOCK_TOKENS
    found: set[tuple[Any, ...]] = set()
    for event in dump[pool]["events"]:
        store = event["event"]["data"]["stored"]
        above = store["parent_hash"]
        for block in store["blocks"]:
            name = block["block_hash"]
            place = (event["worker_id"], event["event"]["dp_rank"], event["storage_tier"])
            found.add((*place, event["residency_domain"], above, name, block["tokens_hash"]))
            assert block["mm_extra_info"] is None
            above = name
    return found


@pytest.fixture
def engine() -> Iterator[Events]:
    events = Events()
    try:
        yield events
    finally:
        events.close()


@pytest.fixture
def theirs(private_network: None, tmp_path: Path) -> Iterator[str]:
    """Address of Dynamo's selection service."""
    pytest.importorskip("dynamo.select_service")
    port = free_port()
    command = [sys.executable, "-m", "dynamo.select_service", "--port", str(port)]
    process = Process(command, tmp_path / "select_service.log")
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return call("GET", f"{url}/health").status == 200
        except OSError:
            return False

    try:
        wait_until(is_up, f"Dynamo's selection service; its log is {process.log}")
        yield url
    finally:
        process.kill()


def await_blocks(url: str, count: int) -> Any:
    """The dump, once it has as many blocks."""
    found: list[Any] = []

    def has_all() -> bool:
        found[:] = [call("GET", f"{url}/dump").body]
        return "m:default" in found[0] and len(blocks(found[0], "m:default")) == count

    wait_until(has_all, f"{count} blocks in the dump")
    return found[0]


def test_the_dump_has_the_blocks_of_dynamos_dump(serve: Serve, theirs: str, engine: Events) -> None:
    with serve(workers=0) as ours:
        for url in (theirs, ours.url):
            engine.subscribed.clear()
            assert call("POST", f"{url}/workers", worker(7, engine)).status == 201
            wait_until(engine.subscribed.is_set, f"a subscription of {url}")
        for event in EVENTS:
            engine.publish([event])
        expected = blocks(await_blocks(theirs, 6), "m:default")
        assert {row[2] for row in expected} == {"device", "host_pinned"}
        assert blocks(await_blocks(ours.url, 6), "m:default") == expected


def test_pools_are_apart_and_can_be_asked_for_alone(serve: Serve, engine: Events) -> None:
    with serve(workers=0) as ours:
        assert ours.http("POST", "/workers", worker(1, engine)).status == 201
        other = worker(2, engine, routing_group="beta", kv_events_endpoints={})
        assert ours.http("POST", "/workers", other).status == 201
        wait_until(engine.subscribed.is_set, "the subscription")
        engine.publish([EVENTS[0]])
        dump = await_blocks(ours.url, 3)
        assert list(dump) == ["m:beta", "m:default"]
        assert dump["m:beta"]["events"] == []
        assert ours.http("GET", "/dump?model_name=unknown") == (200, {})
        alone = ours.http("GET", "/dump?routing_group=beta").body
        assert list(alone) == ["m:beta"]
        assert ours.http("DELETE", "/workers/1").status == 200
        assert list(ours.http("GET", "/dump").body) == ["m:beta"]


def test_a_service_without_workers_has_an_empty_dump(service_without: Served) -> None:
    assert service_without.http("GET", "/dump") == (200, {})


@pytest.fixture
def service_without(serve: Serve) -> Iterator[Served]:
    with serve(workers=0) as ours:
        yield ours


def test_one_dump_is_written_at_a_time(serve: Serve, engine: Events) -> None:
    with serve(workers=0) as ours:
        assert ours.http("POST", "/workers", worker(1, engine)).status == 201
        wait_until(engine.subscribed.is_set, "the subscription")
        # More than the sockets' buffers take, so that the first dump waits for its reader.
        many = 120_000
        for first in range(0, many, 1000):
            names = list(range(first + 1, first + 1001))
            event = stored(names, first or None, 0)
            event["token_ids"] = [first + i for i in range(1000 * BLOCK_TOKENS)]
            engine.publish([event])
        await_held(ours, many)
        host, port = ours.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.sendall(b"GET /dump HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert slow.recv(12).endswith(b"200")
            refused = ours.http("GET", "/dump")
            assert refused.status == 503
            assert "another dump" in refused.body["error"]
            # The kernel sends a window of 4 KiB only now and then.
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            rest = b""
            while piece := slow.recv(1 << 20):
                rest += piece
        assert rest.count(b'"tokens_hash"') == many
        wait_until(lambda: ours.http("GET", "/dump").status == 200, "the next dump")


def await_held(ours: Served, count: int) -> None:
    def holds() -> bool:
        page = ours.server.metrics()
        lines = [row for row in page.splitlines() if row.startswith("wardrop_worker_held_blocks")]
        return sum(float(row.rpartition(" ")[2]) for row in lines) == count

    wait_until(holds, f"{count} held blocks")
