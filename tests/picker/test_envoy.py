"""The picker behind a real Envoy, in front of scripted engines with prefix caches."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.picker.processes import (
    EngineProcess,
    EnvoyProcess,
    PickerProcess,
    Process,
    get,
    post,
)
from tests.waiting import wait_until


def picker_file(engines: list[EngineProcess], **more: Any) -> dict[str, Any]:
    return {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "models": [{"name": "m", "block_size": 16}],
        "workers": [{"url": f"http://{engine.address}"} for engine in engines],
        "routing": {"explain_headers": True},
        **more,
    }


@dataclass
class Fleet:
    """Two engines; pickers and Envoys come on demand and end with the test."""

    folder: Path
    processes: list[Process] = field(default_factory=list)
    engines: list[EngineProcess] = field(default_factory=list)

    def engine(self) -> EngineProcess:
        engine = EngineProcess(self.folder, f"engine{len(self.engines)}")
        self.engines.append(engine)
        self.processes.append(engine)
        return engine

    def picker(self, **more: Any) -> PickerProcess:
        picker = PickerProcess(
            self.folder, picker_file(self.engines, **more), f"picker{len(self.processes)}"
        )
        self.processes.append(picker)
        return picker

    def envoy(self, picker: PickerProcess, **more: Any) -> EnvoyProcess:
        addresses = [engine.address for engine in self.engines]
        envoy = EnvoyProcess(
            self.folder, picker.port, addresses, name=f"envoy{len(self.processes)}", **more
        )
        self.processes.append(envoy)
        return envoy


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(tmp_path)
    try:
        fleet.engine()
        fleet.engine()
        yield fleet
    finally:
        for process in reversed(fleet.processes):
            process.kill()


def completion(envoy: EnvoyProcess, first: int, tokens: int = 256, **more: Any) -> dict[str, Any]:
    body = {"model": "m", "prompt": list(range(first, first + tokens)), **more}
    status, raw, headers = post(f"http://127.0.0.1:{envoy.port}/v1/completions", body)
    answer = (
        json.loads(raw) if headers.get("content-type", "").startswith("application/json") else {}
    )
    return {"status": status, "raw": raw, "headers": headers, **answer}


def is_idle(picker: PickerProcess) -> bool:
    active = picker.metric("worker_active_requests")
    return active == picker.metric("requests_in_flight") == picker.metric("request_body_bytes") == 0


@pytest.mark.parametrize("original_destination", [False, True])
def test_conversations_stay_with_the_engine_that_holds_them(
    fleet: Fleet, original_destination: bool
) -> None:
    picker = fleet.picker()
    envoy = fleet.envoy(picker, original_destination=original_destination)
    homes = {n: completion(envoy, n * 1000)["choices"][0]["text"] for n in range(8)}
    assert set(homes.values()) == {str(engine.port) for engine in fleet.engines}
    for n, home in homes.items():
        answer = completion(envoy, n * 1000, 320)
        assert answer["choices"][0]["text"] == home
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 256
        assert answer["headers"]["x-wardrop-overlap-blocks"] == "16"
    wait_until(lambda: is_idle(picker), "no booking left")
    seen = [each for engine in fleet.engines for each in engine.seen()]
    assert all("content-length" not in {name.lower() for name in each["headers"]} for each in seen)


def test_large_bodies_trailers_streams_and_no_body_pass(fleet: Fleet) -> None:
    picker = fleet.picker()
    envoy = fleet.envoy(picker)
    large = completion(envoy, 0, user="x" * (1 << 20))
    assert large["status"] == 200
    assert max(each["bytes"] for engine in fleet.engines for each in engine.seen()) > 1 << 20
    stream = completion(envoy, 5000, stream=True)
    assert stream["raw"].count(b"data: ") == 5
    assert stream["raw"].endswith(b"data: [DONE]\n\n")
    assert get(f"http://127.0.0.1:{envoy.port}/v1/models")[0] == 200
    body = json.dumps({"model": "m", "prompt": list(range(9000, 9064))}).encode()
    with socket.create_connection(("127.0.0.1", envoy.port), 60) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\ntrailer: x-sum\r\nconnection: close\r\n\r\n"
            + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:50], body[50:]))
            + b"0\r\nx-sum: 1\r\n\r\n"
        )
        answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert b"cached_tokens" in answer
    wait_until(lambda: is_idle(picker), "no booking left")
    assert picker.metric("client_disconnects_total") == 0


def test_a_decision_may_come_long_after_the_body(fleet: Fleet) -> None:
    """Envoy's message timeout of 200 ms does not end a request that waits for room."""
    for engine in fleet.engines:
        engine.hold(True)
    workers = [{"url": f"http://{engine.address}", "max_num_seqs": 1} for engine in fleet.engines]
    queue = {"queue_parameters": {"max_wait_s": 60, "share_passes": 0}}
    picker = fleet.picker(workers=workers, routing=queue)
    envoy = fleet.envoy(picker)
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(completion, envoy, n * 1000, stream=True) for n in range(3)]
        wait_until(lambda: picker.metric("queue_requests") == 1, "one request in the queue")
        timeout_ms = 200
        waited = envoy.stat("http.h.downstream_rq_active")
        assert waited >= 2
        import time

        start_s = time.monotonic()
        wait_until(lambda: time.monotonic() - start_s > 3 * timeout_ms / 1e3)
        assert picker.metric("queue_requests") == 1
        for engine in fleet.engines:
            engine.hold(False)
        assert [answer.result()["status"] for answer in answers] == [200, 200, 200]
    late = [answer.result()["headers"].get("x-wardrop-queue-ms", "0") for answer in answers]
    assert max(map(int, late)) > timeout_ms


def test_without_workers_envoy_answers_503_and_the_reload_brings_them(fleet: Fleet) -> None:
    picker = fleet.picker(workers=[])
    envoy = fleet.envoy(picker)
    refused = completion(envoy, 0)
    assert (refused["status"], refused["error"]["code"]) == (503, "no_worker")
    assert refused["headers"]["retry-after"] == "1"
    picker.write(picker_file(fleet.engines))
    wait_until(lambda: completion(envoy, 0)["status"] == 200, "the workers of the new file")
    picker.file.write_text("models: 5")
    wait_until(lambda: "the last fleet stays" in picker.text(), "the refusal of a broken file")
    assert completion(envoy, 0)["status"] == 200
    assert picker.metric("control_part_up", part="file") == 0


@pytest.mark.parametrize("fail_open", [True, False])
def test_a_dead_picker_fails_open_or_closed(fleet: Fleet, fail_open: bool) -> None:
    picker = fleet.picker()
    envoy = fleet.envoy(picker, fail_open=fail_open)
    assert completion(envoy, 0)["status"] == 200
    port = picker.port
    picker.kill()
    wait_until(
        lambda: envoy.stat("cluster.picker.membership_healthy") == 0, "Envoy to miss the picker"
    )
    statuses = [completion(envoy, n)["status"] for n in range(4)]
    assert statuses == ([200] * 4 if fail_open else [500] * 4)
    fleet.picker(listen=f"127.0.0.1:{port}")
    wait_until(
        lambda: "x-wardrop-worker" in completion(envoy, 0)["headers"], "decisions of the new picker"
    )


def test_a_dead_engine_is_not_chosen_again(fleet: Fleet) -> None:
    picker = fleet.picker(feed={"quarantine_ms": 600_000})
    envoy = fleet.envoy(picker)
    homes = {n: completion(envoy, n * 1000)["choices"][0]["text"] for n in range(8)}
    dead, alive = fleet.engines
    dead.kill()
    wait_until(
        lambda: all(completion(envoy, n * 1000)["status"] == 200 for n in homes),
        "no request to the dead engine",
    )
    assert picker.metric("picker_unreached_total") >= 1
    assert {completion(envoy, n * 1000)["choices"][0]["text"] for n in homes} == {str(alive.port)}
    wait_until(lambda: is_idle(picker), "no booking left")


def test_clients_that_leave_release_their_bookings(fleet: Fleet) -> None:
    picker = fleet.picker()
    envoy = fleet.envoy(picker)
    for engine in fleet.engines:
        engine.hold(True)
    clients = []
    for n in range(20):
        client = http.client.HTTPConnection("127.0.0.1", envoy.port, timeout=60)
        body = {"model": "m", "prompt": list(range(n * 100, n * 100 + 64)), "stream": True}
        client.request("POST", "/v1/completions", json.dumps(body))
        clients.append(client)
    wait_until(lambda: sum(len(engine.seen()) for engine in fleet.engines) == 20, "20 requests")
    for client in clients:
        client.close()
    wait_until(lambda: is_idle(picker), "the bookings of clients that left")
    assert picker.metric("client_disconnects_total") == 20


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.heavy)])
def test_many_streams_leave_nothing(fleet: Fleet, count: int) -> None:
    picker = fleet.picker()
    envoy = fleet.envoy(picker)

    def run(lane: int) -> int:
        client = http.client.HTTPConnection("127.0.0.1", envoy.port, timeout=60)
        done = 0
        for n in range(count // 16):
            first = (lane * 31 + n % 8) * 64
            body = {"model": "m", "prompt": list(range(first, first + 64)), "stream": n % 2 == 0}
            client.request("POST", "/v1/completions", json.dumps(body))
            response = client.getresponse()
            response.read()
            done += response.status == 200
        client.close()
        return done

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(run, range(16))) == count // 16 * 16
    wait_until(lambda: is_idle(picker), "no booking left")
    assert picker.metric("panics_total") == 0
    assert envoy.stat("ext_proc.streams_failed") == 0


def test_the_command_stops_in_order(fleet: Fleet) -> None:
    picker = fleet.picker()
    assert picker.terminate() == 0
