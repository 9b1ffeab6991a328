"""The parts of the control plane: isolated, restarted, and reported in `/health` and metrics."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from tests.waiting import wait_until_async

from wardrop._core import Gateway
from wardrop.dynamo import parts as parts_module
from wardrop.dynamo.parts import Parts


class Recorder:
    def __init__(self) -> None:
        self.reported: dict = {}

    def set_parts(self, parts_json: str, /) -> None:
        self.reported = json.loads(parts_json)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(parts_module, "_FIRST_BACKOFF_S", 0.001)
    monkeypatch.setattr(parts_module, "_MAX_BACKOFF_S", 0.002)


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("deep"),
        OSError(24, "Too many open files"),
        KeyError("x"),
        MemoryError(),
        AssertionError(),
        ZeroDivisionError(),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_failing_part_starts_again_and_ends_no_other(error):
    async def run() -> None:
        gateway = Recorder()
        parts = Parts(gateway)
        starts = 0
        stop = asyncio.Event()

        async def failing() -> None:
            nonlocal starts
            starts += 1
            if starts <= 3:
                raise error
            await stop.wait()

        beside = asyncio.create_task(parts.keep("beside", stop.wait))
        task = asyncio.create_task(parts.keep("failing", failing))
        await wait_until_async(lambda: starts == 4)
        assert not task.done()
        assert not beside.done()
        assert gateway.reported["failing"]["failures"] == 3
        assert type(error).__name__ in gateway.reported["failing"]["error"]
        assert gateway.reported["failing"]["up"]
        assert gateway.reported["beside"] == {"up": True, "failures": 0, "error": ""}
        stop.set()
        await asyncio.gather(task, beside)

    asyncio.run(run())


def test_cancelled_part_does_not_start_again():
    async def run() -> None:
        starts = 0

        async def part() -> None:
            nonlocal starts
            starts += 1
            await asyncio.Event().wait()

        task = asyncio.create_task(Parts(Recorder()).keep("part", part))
        await wait_until_async(lambda: starts == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert starts == 1

    asyncio.run(run())


def health(url: str) -> dict[str, Any]:
    """The answer of `/health` of a router that serves nothing."""
    with pytest.raises(urllib.error.HTTPError) as answered:
        urllib.request.urlopen(f"{url}/health", timeout=30)
    with answered.value as answer:
        return json.loads(answer.read())


def test_states_are_in_health_and_metrics_and_leave_with_their_part():
    native = Gateway('{"listen": "127.0.0.1:0"}')
    url = f"http://127.0.0.1:{native.start()}"
    try:
        parts = Parts(native)
        parts.report("discovery_source", "etcd: gone")
        parts.report("discovery_source", "etcd: gone")
        state = health(url)["control"]["discovery_source"]
        assert state == {"up": False, "failures": 1, "error": "etcd: gone"}
        page = native.metrics()
        assert 'wardrop_control_part_up{part="discovery_source",router_id="' in page
        assert 'wardrop_control_part_failures_total{part="discovery_source"' in page
        assert "wardrop_control_part_answered_timestamp_seconds{" not in page
        parts.report("discovery_source", None, 1234.5)
        state = health(url)["control"]["discovery_source"]
        assert (state["up"], state["answered_unix_s"]) == (True, 1234.0)
        name = 'wardrop_control_part_answered_timestamp_seconds{part="discovery_source"'
        (line,) = [line for line in native.metrics().splitlines() if line.startswith(name)]
        assert line.endswith(" 1234")
        native.set_parts("{}")
        assert "wardrop_control_part_answered_timestamp_seconds{" not in native.metrics()
        assert "wardrop_control_part_up{" not in native.metrics()
        for bad in ("[]", '{"a": 1}', '{"a": {"up": true}}', "{", '{"a":' * 5000):
            with pytest.raises(ValueError, match="parts"):
                native.set_parts(bad)
    finally:
        native.stop()
