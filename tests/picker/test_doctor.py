"""`wardrop doctor` on `wardrop picker` behind a real Envoy, in front of engines with KV events."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.doctor.diagnosis import diagnose
from tests.fleet.engine import Engine
from tests.picker.processes import EnvoyProcess, PickerProcess, Process
from tests.waiting import DEADLINE_S, wait_until

pytest.importorskip("envoy")


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    """Two engines with KV events."""
    made = [Engine(), Engine()]
    yield made
    for engine in made:
        engine.close()


def address(engine: Engine) -> str:
    return engine.url.removeprefix("http://")


def worker(engine: Engine) -> dict[str, Any]:
    assert engine.events is not None
    return {
        "url": engine.url,
        "events": f"tcp://127.0.0.1:{engine.events.events_port}",
        "replay": f"tcp://127.0.0.1:{engine.events.replay_port}",
    }


Start = Callable[..., tuple[PickerProcess, EnvoyProcess]]


@pytest.fixture
def start(tmp_path: Path, engines: list[Engine]) -> Iterator[Start]:
    """Start a picker of both engines, and an Envoy that reaches the named ones."""
    processes: list[Process] = []

    def both(reached: list[Engine] | None = None, receipts: int = 100) -> Any:
        file = {
            "listen": "127.0.0.1:0",
            "http_listen": "127.0.0.1:0",
            "models": [{"name": "m", "block_size": 16}],
            "workers": [worker(engine) for engine in engines],
            "receipts": receipts,
        }
        picker = PickerProcess(tmp_path, file)
        processes.append(picker)
        for engine in engines:
            assert engine.events is not None
            assert engine.events.subscribed.wait(DEADLINE_S)
        addresses = [address(engine) for engine in reached or engines]
        envoy = EnvoyProcess(tmp_path, picker.port, addresses)
        processes.append(envoy)
        return picker, envoy

    yield both
    for process in processes:
        process.kill()


def run(picker: PickerProcess, envoy: EnvoyProcess | None) -> tuple[int, dict[str, Any]]:
    public = [] if envoy is None else [f"http://127.0.0.1:{envoy.port}"]
    return diagnose(f"http://127.0.0.1:{picker.http_port}", *public)


def test_a_healthy_picker_passes(start: Start) -> None:
    code, found = run(*start())
    # No folder of the model is named, which the check of prompts reports.
    failures = {name for name, one in found.items() if one["level"] == "failure"}
    assert (code, failures) == (1, {"prompts"}), found
    for name in ("versions", "control", "clock", "workers", "feeds", "trust", "pin", "blocks"):
        assert found[name]["level"] == "ok", found[name]
    assert "128 cached tokens predicted, 128 reported" in found["blocks"]["text"]
    assert found["salt"]["level"] == "ok"


def test_a_proxy_that_ignores_the_destination_is_found(start: Start, engines: list[Engine]) -> None:
    # The other engine is no host of Envoy's cluster, so its fallback sends every request to one.
    picker, envoy = start(reached=engines[:1])

    def is_found() -> bool:
        _, found = run(picker, envoy)
        pin = found.get("pin", {"level": "", "text": ""})
        return pin["level"] == "failure" and "the proxy ignores the destination" in pin["text"]

    # A new prompt goes to either worker, at random.
    wait_until(is_found, "a canary for the engine that Envoy does not reach")


def test_a_broken_file_is_found(start: Start) -> None:
    picker, envoy = start()
    picker.write({"models": "none"})

    def is_found() -> bool:
        code, found = run(picker, envoy)
        return code == 1 and found["control"]["level"] == "failure"

    wait_until(is_found, "the part of the file to be down")


def test_without_the_address_of_the_proxy_no_canary_is_sent(start: Start) -> None:
    picker, _ = start()
    _, found = run(picker, None)
    assert found["canary"]["level"] == "skipped"
    assert "wardrop doctor http://PROXY:PORT" in found["canary"]["advice"]


def test_a_picker_without_receipts_says_what_to_do(start: Start) -> None:
    code, found = run(*start(receipts=0))
    assert code == 1
    assert "set receipts: 1000 in its file" in found["canary"]["text"]
