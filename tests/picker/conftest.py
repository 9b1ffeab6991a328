"""A picker in this process, and a channel to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from tests.picker.processes import metric

from wardrop._core import Picker

FIRST, SECOND, THIRD = "127.0.0.1:18001", "127.0.0.1:18002", "127.0.0.2:18003"


class Served:
    """A picker that serves, with a channel to it."""

    def __init__(self, picker: Picker, channel: grpc.Channel) -> None:
        self.picker, self.channel = picker, channel

    def status(self) -> dict[str, Any]:
        return json.loads(self.picker.status())

    def metric(self, name: str, **labels: str) -> float:
        return metric(self.picker.metrics(), name, **labels)

    def bookings(self) -> int:
        pools = [pool for model in self.status()["models"] for pool in model["pools"]]
        return sum(pool["bookings"] for pool in pools)

    def is_idle(self) -> bool:
        status = self.status()
        return status["in_flight"] == status["body_bytes"] == self.bookings() == 0


Serve = Callable[..., Any]


@contextmanager
def served(
    endpoints: list[dict[str, Any]] | None = None,
    models: list[dict[str, Any]] | None = None,
    **config: Any,
) -> Iterator[Served]:
    config.setdefault("listen", "127.0.0.1:0")
    routing = {"policy": {"name": "toll"}, "predicted": {"used": "alone"}}
    routing |= config.pop("routing", {})
    picker = Picker(json.dumps({**config, "routing": routing}))
    try:
        for model in models or [{"name": "m", "block_size": 16}]:
            picker.upsert_model(json.dumps(model))
        if endpoints is None:
            endpoints = [{"address": FIRST, "model": "m"}, {"address": SECOND, "model": "m"}]
        picker.set_endpoints(json.dumps(endpoints))
        port = picker.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Served(picker, channel)
    finally:
        picker.stop()


@pytest.fixture
def serve() -> Serve:
    """Start a picker with settings of its own, as a context manager."""
    return served


@pytest.fixture
def picker() -> Iterator[Served]:
    """A picker with two workers of one model."""
    with served() as each:
        yield each
