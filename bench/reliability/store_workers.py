"""Workers that exist in the discovery store only, with real ZeroMQ publishers of their events."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from tests.chaos.severable import SeverableProxy

_ENDPOINT = {"namespace": "dynamo", "component": "backend", "name": "generate"}
_KEEP_ALIVE_S = 2.0
_TOPIC = "kv-events"


class StoreWorkers:
    """Registers workers beside a living one, whose model card they copy.

    Args:
        store: Root of the file store.
        component: Component of the workers; another name than `backend` needs another model.
        model: Name of their model.

    Attributes:
        proxies: Severable proxy by publisher, of the publishers that have one.
    """

    def __init__(self, store: Path, component: str = "backend", model: str = "tiny") -> None:
        self._base = store / "v1"
        self._endpoint = {**_ENDPOINT, "component": component}
        self._model = model
        self._paths: list[Path] = []
        self.proxies: dict[int, SeverableProxy] = {}
        self._sequences: dict[int, int] = {}
        self._publishers: dict[int, Any] = {}
        self._context = zmq.asyncio.Context()
        self._context.max_sockets = 60_000
        cards = sorted(self._base.glob("mdc/[!.]*"), key=lambda path: path.stat().st_mtime_ns)
        self._card: dict[str, Any] = json.loads(cards[-1].read_bytes())
        self._keeping = asyncio.create_task(self._keep_alive())

    def add(self, instance: int) -> None:
        """Register a worker without a feed."""
        component = self._endpoint["component"]
        name = f"dynamo%2F{component}%2Fgenerate%2F{instance:x}"
        card = copy.deepcopy(self._card)
        card.update(component=component, instance_id=instance)
        card["card_json"].update(display_name=self._model, slug=self._model)
        self._put("mdc", name, card)
        address = {
            "type": "Endpoint",
            **{"component": component, "endpoint": "generate", "namespace": "dynamo"},
            "instance_id": instance,
            "transport": {"tcp": f"127.0.0.1:9/{instance:x}/dynamo/{component}/generate"},
        }
        self._put("instances", name, address)

    async def publish(self, instance: int, publisher: int, through_proxy: bool = False) -> None:
        """Open a publisher of KV events for a worker, and register it.

        Args:
            instance: The worker.
            publisher: Id of the publisher.
            through_proxy: Register the address of a severable proxy, kept in `proxies`.
        """
        socket = self._context.socket(zmq.PUB)
        socket.linger = 0
        socket.sndhwm = 0
        port = socket.bind_to_random_port("tcp://127.0.0.1", max_tries=1000)
        if through_proxy:
            self.proxies[publisher] = await SeverableProxy(("127.0.0.1", port)).start()
            port = self.proxies[publisher].port
        self._publishers[publisher] = socket
        self._sequences[publisher] = 0
        component = self._endpoint["component"]
        name = (
            f"namespace%2Fdynamo%2Fcomponent%2F{component}%2Fendpoint%2Fgenerate"
            f"%2Ftopic%2Fkv%2Devents%2F{publisher:x}"
        )
        scope = {"kind": "endpoint", "endpoint": self._endpoint}
        self._put(
            "event_sources",
            name,
            {
                "type": "EventSource",
                "scope": scope,
                "topic": _TOPIC,
                "publisher_id": publisher,
                "metadata": {
                    "kv_state_endpoint": self._endpoint,
                    "worker": {"worker_id": instance, "dp_rank": 0},
                    "publisher_id": publisher,
                },
            },
        )
        self._put(
            "event_channels",
            name,
            {
                "type": "EventChannel",
                "scope": scope,
                "topic": _TOPIC,
                "instance_id": publisher,
                "transport": {
                    "kind": "Zmq",
                    "config": {"endpoint": f"tcp://127.0.0.1:{port}"},
                },
            },
        )

    def end_publisher(self, publisher: int) -> None:
        """Close a publisher and remove its entries, as the end of its process does."""
        self._publishers.pop(publisher).close()
        for path in [p for p in self._paths if p.name.endswith(f"%2F{publisher:x}")]:
            path.unlink(missing_ok=True)
            self._paths.remove(path)

    async def stored(
        self, publisher: int, instance: int, event_id: int, hashes: Sequence[int], rank: int = 0
    ) -> None:
        """Publish a stored event: a chain of blocks without a parent."""
        blocks = [{"block_hash": h, "tokens_hash": h, "mm_extra_info": None} for h in hashes]
        data = {"stored": {"parent_hash": None, "blocks": blocks}}
        await self._send(publisher, instance, event_id, data, rank)

    async def cleared(self, publisher: int, instance: int, event_id: int) -> None:
        """Publish a cleared event: the worker holds no block any more."""
        await self._send(publisher, instance, event_id, "cleared", 0)

    async def _send(
        self, publisher: int, instance: int, event_id: int, data: object, rank: int
    ) -> None:
        event = {"event_id": event_id, "data": data, "dp_rank": rank}
        payload = [{"worker_id": instance, "storage_tier": "device", "event": event}]
        sequence = self._sequences[publisher]
        self._sequences[publisher] += 1
        envelope = msgspec.msgpack.encode(
            {
                "publisher_id": publisher,
                "sequence": sequence,
                "published_at": 0,
                "topic": _TOPIC,
                "payload": msgspec.msgpack.encode(payload),
            }
        )
        head = [_TOPIC.encode(), struct.pack(">Q", publisher), struct.pack(">Q", sequence)]
        body = b"\x01" + struct.pack(">I", len(envelope)) + envelope
        await self._publishers[publisher].send_multipart([*head, body])

    async def close(self) -> None:
        """Remove every entry and close every publisher."""
        self._keeping.cancel()
        for proxy in self.proxies.values():
            await proxy.stop()
        for path in self._paths:
            path.unlink(missing_ok=True)
        self._context.destroy(linger=0)

    def _put(self, bucket: str, name: str, entry: dict[str, Any]) -> None:
        path = self._base / bucket / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{name}")
        temporary.write_text(json.dumps(entry))
        temporary.replace(path)
        self._paths.append(path)

    async def _keep_alive(self) -> None:
        while True:
            for path in list(self._paths):
                try:
                    os.utime(path)
                except OSError:
                    continue
            await asyncio.sleep(_KEEP_ALIVE_S)
