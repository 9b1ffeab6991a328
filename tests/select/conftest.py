"""A selection service in this process, with clients of both of its protocols."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.picker.processes import Answered, call

from wardrop._core import SelectServer
from wardrop.client import SelectionClient


class Served:
    def __init__(self, server: SelectServer, client: SelectionClient) -> None:
        self.server, self.client = server, client
        self.url = f"http://{self.status()['http_address']}"

    def status(self) -> dict[str, Any]:
        return json.loads(self.server.status())

    def http(self, method: str, path: str, body: dict[str, Any] | None = None) -> Answered:
        return call(method, self.url + path, body)

    def active(self) -> dict[int, int]:
        """Requests in flight, by worker."""
        return {load.worker_id: load.active_requests for load in self.client.loads("m")}


@contextmanager
def served(workers: int = 2, **config: Any) -> Iterator[Served]:
    routing = {"policy": {"name": "dynamo"}, **config.pop("routing", {})}
    every = {
        "grpc_listen": "127.0.0.1:0",
        "http_listen": "127.0.0.1:0",
        "routing": routing,
        **config,
    }
    server = SelectServer(json.dumps(every))
    try:
        server.start()
        with SelectionClient(json.loads(server.status())["grpc_address"], timeout_s=30) as client:
            for number in range(1, workers + 1):
                client.upsert_worker(
                    number, model="m", endpoint=f"http://w{number}", kv_blocks=4096
                )
            yield Served(server, client)
    finally:
        server.stop()


Serve = Callable[..., Any]


@pytest.fixture
def serve() -> Serve:
    """Start a service with settings of its own, as a context manager."""
    return served


@pytest.fixture
def service() -> Iterator[Served]:
    """A service with two workers under Dynamo's cost."""
    with served() as each:
        yield each
