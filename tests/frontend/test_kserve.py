"""KServe over gRPC in the native frontend: its completions are decided by Wardrop."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from tests.frontend.native import Native
from tests.live.client import get
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.ports import free_port

grpc = pytest.importorskip("grpc")
pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network", "binary")]

VARINT, BYTES = 0, 2
"""Wire types of Protocol Buffers."""


def varint(value: int) -> bytes:
    """A number in the wire format of Protocol Buffers."""
    parts: list[int] = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, value: bytes | int) -> bytes:
    """A field in the wire format of Protocol Buffers."""
    if isinstance(value, int):
        return varint(number << 3 | VARINT) + varint(value)
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def infer_request(model: str, text: str) -> bytes:
    """`inference.ModelInferRequest` with one text, as KServe defines it."""
    contents = field(8, text.encode())
    tensor = field(1, b"text_input") + field(2, b"BYTES") + field(3, varint(1))
    return field(1, model.encode()) + field(5, tensor + field(5, contents))


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet(FleetSpec(workers=2, speedup_ratio=20, process_per_worker=False)) as fleet:
        yield fleet


def test_completion_over_grpc_is_decided_by_wardrop_and_reaches_a_worker(fleet: Fleet):
    arguments = ("--kserve-grpc-server", "--grpc-metrics-port", str(free_port()))
    native = Native(fleet, (*arguments, "--wardrop-admin-port", "0"), {})
    target = native.url.removeprefix("http://")

    def said() -> str:
        """What the worker says to a request."""
        assert native.child.exit_code is None, native.child.tail()
        with grpc.insecure_channel(target) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            with pytest.raises(grpc.RpcError) as refused:
                call(infer_request(fleet.spec.model_name, "hello there"), timeout=10)
        return str(refused.value)

    def decisions() -> float:
        found = re.search(r"live page on (http://127\.0\.0\.1:\d+)/", native.log)
        if found is None:
            return -1.0
        page = get(found.group(1), "/metrics").body.decode()
        rows = re.findall(r"^wardrop_decisions_total{.*} (\S+)$", page, re.M)
        return sum(map(float, rows))

    try:
        # Dynamo's KServe has no field for the number of tokens, and mock workers demand one.
        wait_until(
            lambda: "max_output_tokens must be specified for mocker" in said(), "a worker", 60.0
        )
        wait_until(lambda: decisions() > 0, "a decision by Wardrop")
        before = decisions()
        said()
        assert decisions() == before + 1
    finally:
        native.child.stop(10.0)
