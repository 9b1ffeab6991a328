"""Thousands of streams through the picker leave nothing behind: descriptors, threads, memory."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import grpc.aio
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as messages
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as services
from tests.picker.conftest import FIRST, SECOND
from tests.picker.processes import PickerProcess
from tests.picker.streams import DUPLEX, header_map
from tests.waiting import wait_until

LANES = 32
"""Streams at one time."""
PROMPTS = 64
"""Different prompts: the predicted caches hold all of them after the first round."""
KINDS = ("finished", "finished", "left", "broken", "bodiless")
"""How the streams end, in turn."""


@dataclass
class Usage:
    """Resources of a process at one moment."""

    descriptors: int
    threads: int
    resident_bytes: int


def usage(pid: int) -> Usage:
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return Usage(
        descriptors=len(list(Path(f"/proc/{pid}/fd").iterdir())),
        threads=int(status["Threads"]),
        resident_bytes=int(status["VmRSS"].split()[0]) << 10,
    )


def slope(points: list[tuple[int, int]]) -> float:
    """Growth of the second value for each unit of the first, by least squares."""
    x_mean, y_mean = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread


def request(number: int, *, end: bool) -> messages.ProcessingRequest:
    """The head of a request."""
    modes = messages.ProtocolConfiguration()
    modes.request_body_mode = modes.response_body_mode = DUPLEX  # type: ignore[assignment]
    method, path = ("GET", "/v1/models") if end else ("POST", "/v1/completions")
    head = {":method": method, ":path": path, "x-request-id": f"leak-{number}"}
    return messages.ProcessingRequest(
        request_headers=messages.HttpHeaders(headers=header_map(head), end_of_stream=end),
        protocol_config=modes,
    )


def body(number: int) -> messages.ProcessingRequest:
    first = number % PROMPTS * 1000
    prompt = {"model": "m", "prompt": list(range(first, first + 64)), "stream": True}
    content = json.dumps(prompt).encode()
    return messages.ProcessingRequest(
        request_body=messages.HttpBody(body=content, end_of_stream=True)
    )


def answer_head() -> messages.ProcessingRequest:
    head = {":status": "200", "content-type": "text/event-stream"}
    return messages.ProcessingRequest(
        response_headers=messages.HttpHeaders(headers=header_map(head))
    )


def answer_piece(*, end: bool) -> messages.ProcessingRequest:
    event = {"choices": [{"index": 0, "text": "x"}]}
    content = f"data: {json.dumps(event)}\n\n" + ("data: [DONE]\n\n" if end else "")
    return messages.ProcessingRequest(
        response_body=messages.HttpBody(body=content.encode(), end_of_stream=end)
    )


async def walk(stub: services.ExternalProcessorStub, number: int) -> str:
    """One stream from its head to its end; the worker that the picker chose."""
    kind = KINDS[number % len(KINDS)]
    call = stub.Process()
    await call.write(request(number, end=kind == "bodiless"))
    if kind != "bodiless":
        await call.write(body(number))
    decision = await call.read()
    assert decision.WhichOneof("response") == "request_headers", decision
    mutation = decision.request_headers.response.header_mutation
    values = {each.header.key: each.header.raw_value.decode() for each in mutation.set_headers}
    if kind == "left":
        call.cancel()
    else:
        if kind != "bodiless":
            assert (await call.read()).WhichOneof("response") == "request_body"
        await call.write(answer_head())
        assert (await call.read()).WhichOneof("response") == "response_headers"
        for end in (False, True):
            await call.write(answer_piece(end=end))
            assert (await call.read()).WhichOneof("response") == "response_body"
            if kind == "broken":
                call.cancel()
                break
        if kind != "broken":
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
    return values["x-gateway-destination-endpoint"]


@asynccontextmanager
async def stub_of(port: int) -> AsyncIterator[services.ExternalProcessorStub]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield services.ExternalProcessorStub(channel)


async def drive(port: int, numbers: range) -> Counter[str]:
    """Walk the streams, `LANES` at a time; how often each worker was chosen."""
    chosen: Counter[str] = Counter()
    left = iter(numbers)

    async def lane() -> None:
        for number in left:
            chosen[await walk(stub, number)] += 1

    async with stub_of(port) as stub, asyncio.TaskGroup() as lanes:
        for _ in range(LANES):
            lanes.create_task(lane())
    return chosen


@pytest.fixture
def picker(tmp_path: Path) -> Iterator[PickerProcess]:
    file: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "models": [{"name": "m", "block_size": 16}],
        "workers": [{"url": f"http://{address}", "model": "m"} for address in (FIRST, SECOND)],
    }
    process = PickerProcess(tmp_path, file)
    try:
        yield process
    finally:
        process.kill()


@pytest.mark.parametrize("streams", [500, pytest.param(10_000, marks=pytest.mark.heavy)])
def test_streams_leave_nothing_behind(picker: PickerProcess, streams: int) -> None:
    step = streams // 20

    def await_idle() -> None:
        for name in ("requests_in_flight", "request_body_bytes", "worker_active_requests"):
            wait_until(lambda n=name: picker.metric(n) == 0, f"{name} of 0")

    # Warms the caches, the event loops and the allocator.
    asyncio.run(drive(picker.port, range(step)))
    await_idle()
    before = usage(picker.child.pid)
    chosen: Counter[str] = Counter()
    points: list[tuple[int, int]] = []
    for begin in range(0, streams, step):
        chosen += asyncio.run(drive(picker.port, range(begin, begin + step)))
        points.append((begin + step, usage(picker.child.pid).resident_bytes))
    await_idle()
    assert chosen.total() == streams
    assert set(chosen) == {FIRST, SECOND}
    for name in ("worker_prefill_tokens", "worker_decode_blocks", "picker_protocol_errors_total"):
        assert picker.metric(name) == 0, name
    expired = picker.metric("bookings_expired_total")
    assert expired == 0, "every booking ends with its stream"
    wait_until(
        lambda: usage(picker.child.pid).descriptors <= before.descriptors,
        "as many descriptors as before",
    )
    wait_until(
        lambda: usage(picker.child.pid).threads <= before.threads, "as many threads as before"
    )
    # A leaked stream of 64 prompt tokens would keep more than a kilobyte.
    if streams >= 10_000:  # with fewer, the allocator's noise is larger than a leak
        grown = slope(points[len(points) // 2 :])
        assert grown < 512, f"{grown:.0f} bytes for each stream: {points}"
