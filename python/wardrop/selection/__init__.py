"""The file of `wardrop select`: stages of the routing service, and workers that are there at start.

    routing: {policy: dynamo, queue: false}
    workers:
      - {worker_id: 1, model_name: m, endpoint: "http://10.0.0.1:8000", block_size: 16}

The stages `routing`, `predicted`, `feed`, `records`, `tracing` and `peers` are those of
`wardrop dynamo`. Workers have the fields of Dynamo's selection service. Unknown stages are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec

from wardrop.decoding import convert
from wardrop.errors import InputError
from wardrop.picker.file import native_stages
from wardrop.yaml_file import read_yaml


class SelectFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        worker_threads: Threads that serve calls.
        router_id: Label of all metrics.
        reservation_ttl_ms: Life of a reservation that no caller frees.
        selection_ttl_ms: Life of a selection without a reservation.
        all_bodies_bytes: Bytes of the bodies of all calls that are served at one time.
        read_timeout_ms: Longest time for the bytes of one HTTP call.
        routing: The choice of a worker; the queue is off here.
        predicted: Predicted caches; by default `used: alone`.
        feed: Feeds of events.
        records: Decision records; one line per reservation.
        tracing: OpenTelemetry spans of reservations.
        receipts: Recent decisions whose reasons are kept.
        peers: Routers that share the fleet.
        workers: Workers at start, with the fields of Dynamo's selection service.
    """

    worker_threads: int = 2
    router_id: str = "wardrop-0"
    reservation_ttl_ms: int = 300_000
    selection_ttl_ms: int = 120_000
    all_bodies_bytes: int = 256 << 20
    read_timeout_ms: int = 30_000
    routing: dict[str, Any] = {}
    predicted: dict[str, Any] = {}
    feed: dict[str, Any] = {}
    records: dict[str, Any] = {}
    tracing: dict[str, Any] = {}
    receipts: Annotated[int, msgspec.Meta(ge=0, le=65_536)] = 0
    peers: dict[str, Any] = {}
    workers: Annotated[tuple[dict[str, Any], ...], msgspec.Meta(max_length=16_384)] = ()

    def native_json(self, grpc_listen: str | None, http_listen: str | None, policy: str) -> str:
        """The configuration of `wardrop._core.SelectServer`, as JSON.

        Args:
            grpc_listen: `host:port` of the gRPC service, or None.
            http_listen: `host:port` of the HTTP service, or None.
            policy: Policy where the file names none.

        Raises:
            InputError: A value of a stage has the wrong type or is out of range.
        """
        if self.routing.get("queue"):
            raise InputError(
                "routing.queue: got true, expected false: a selection is answered at once"
            )
        routing = {"policy": policy, **self.routing, "queue": False}
        predicted = {"used": "alone"} | self.predicted
        stages = native_stages(
            {
                "routing": routing,
                "predicted": predicted,
                "feed": self.feed,
                "records": self.records,
                "tracing": self.tracing,
                "peers": self.peers,
            }
        )
        return json.dumps(
            {
                "grpc_listen": grpc_listen,
                "http_listen": http_listen,
                "worker_threads": self.worker_threads,
                "router_id": self.router_id,
                "reservation_ttl_ms": self.reservation_ttl_ms,
                "selection_ttl_ms": self.selection_ttl_ms,
                "all_bodies_bytes": self.all_bodies_bytes,
                "read_timeout_ms": self.read_timeout_ms,
                "routing": stages["routing"] | {"receipts": self.receipts},
                "feed": stages["feed"],
                "records": stages["records"],
                "tracing": stages["tracing"],
                "peers": stages["peers"],
                "log": "info",
            }
        )

    def workers_json(self) -> list[str]:
        """The workers as `wardrop._core.SelectServer.upsert_worker` takes them."""
        return [json.dumps(worker) for worker in self.workers]


def read_file(path: Path) -> SelectFile:
    """Read and check a file.

    Raises:
        InputError: The file cannot be read, or a key or value is wrong.
    """
    content = read_yaml(path)
    return cast(SelectFile, convert({} if content is None else content, SelectFile, str(path)))
