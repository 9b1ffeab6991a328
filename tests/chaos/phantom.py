"""A scripted engine: it registers in the store, publishes KV events, and takes no traffic.

Its model has a name of its own, so no client asks for it. The test knows exactly which blocks each
of its lives holds, and compares them with what the router believes. Frontends list the model, since
the router takes no worker that no frontend serves; only the router's copy of the store has the
feed.
"""

from __future__ import annotations

import asyncio
import copy
import json
import os
import struct
import time
from typing import Any

import msgspec
import zmq
import zmq.asyncio
from tests.chaos.mirror import StoreMirror

MODEL = "phantom"
INSTANCE = 0x5EED
_NAME = f"dynamo%2Fphantom%2Fgenerate%2F{INSTANCE:x}"
_KEEP_ALIVE_S = 2.0
_ENDPOINT = {"namespace": "dynamo", "component": "phantom", "name": "generate"}


class Life:
    """One life of the engine: a publisher whose event ids begin at 1."""

    def __init__(self, publisher_id: int) -> None:
        self.publisher_id = publisher_id
        self.socket = zmq.asyncio.Context.instance().socket(zmq.XPUB)
        self.socket.linger = 0
        self.port = self.socket.bind_to_random_port("tcp://127.0.0.1")
        self.sequence = 0
        self.event_id = 0

    async def await_subscription(self, timeout_s: float) -> bool:
        """Whether the router subscribed in time."""
        while await self.socket.poll(1000 * timeout_s):
            if (await self.socket.recv()).startswith(b"\x01"):
                return True
        return False

    async def stored(self, hashes: list[int], rank: int = 0) -> None:
        """Announce a chain of blocks, the first without a parent."""
        self.event_id += 1
        blocks = [{"block_hash": h, "tokens_hash": h, "mm_extra_info": None} for h in hashes]
        await self._send(
            [
                {
                    "worker_id": INSTANCE,
                    "storage_tier": "device",
                    "event": {
                        "event_id": self.event_id,
                        "data": {"stored": {"parent_hash": None, "blocks": blocks}},
                        "dp_rank": rank,
                    },
                }
            ]
        )

    async def garbage(self, data: bytes) -> None:
        """Send a message whose payload is no event."""
        await self.socket.send_multipart([b"kv-events", b"\x00" * 8, b"\x00" * 8, data])

    async def _send(self, payload: object) -> None:
        envelope = msgspec.msgpack.encode(
            {
                "publisher_id": self.publisher_id,
                "sequence": self.sequence,
                "published_at": int(time.time() * 1000),
                "topic": "kv-events",
                "payload": msgspec.msgpack.encode(payload),
            }
        )
        head = [struct.pack(">Q", self.publisher_id), struct.pack(">Q", self.sequence)]
        body = b"\x01" + struct.pack(">I", len(envelope)) + envelope
        await self.socket.send_multipart([b"kv-events", *head, body])
        self.sequence += 1

    def close(self) -> None:
        """End this life without a word."""
        self.socket.close()


class Phantom:
    """The engine, over all its lives.

    Args:
        mirror: The router's copy of the store.

    Attributes:
        held: Hashes of the present life's blocks, rank 0.
    """

    def __init__(self, mirror: StoreMirror) -> None:
        self.held: set[int] = set()
        self.life: Life | None = None
        self._mirror = mirror
        self._lives = 0

    def register(self) -> None:
        """Begin a life under the same instance id, with a publisher of its own."""
        if self.life is not None:
            self._mirror_remove(self.life.publisher_id)
            self.life.close()
        self._lives += 1
        self.held = set()
        self.life = Life(0xFA0000 + self._lives)
        for bucket, entry in (("mdc", self.card(MODEL)), ("instances", self.address())):
            path = self._mirror.source / "v1" / bucket / _NAME
            temporary = path.with_name(f".{path.name}")
            temporary.write_text(json.dumps(entry))
            temporary.replace(path)
        publisher = self.life.publisher_id
        scope = {"kind": "endpoint", "endpoint": _ENDPOINT}
        worker = {"worker_id": INSTANCE, "dp_rank": 0}
        source = {
            "type": "EventSource",
            "scope": scope,
            "topic": "kv-events",
            "publisher_id": publisher,
            "metadata": {"kv_state_endpoint": _ENDPOINT, "worker": worker},
        }
        self._mirror.put("event_sources", f"phantom-{publisher:x}", json.dumps(source).encode())
        channel = {
            "type": "EventChannel",
            "scope": scope,
            "topic": "kv-events",
            "instance_id": publisher,
            "transport": {
                "kind": "Zmq",
                "config": {"endpoint": f"tcp://127.0.0.1:{self.life.port}"},
            },
        }
        self._mirror.put("event_channels", f"phantom-{publisher:x}", json.dumps(channel).encode())

    def card(self, model: str, instance: int = INSTANCE) -> dict[str, Any]:
        """A model card under another name, made from a real one."""
        card: dict[str, Any] = copy.deepcopy(self._mirror.latest("mdc", without=_NAME))
        card.update(component="phantom", endpoint="generate", instance_id=instance)
        inner = card["card_json"]
        inner.update(display_name=model, slug=model)
        return card

    def address(self, instance: int = INSTANCE) -> dict[str, Any]:
        """An instance whose request plane nobody serves."""
        return {
            "type": "Endpoint",
            "component": "phantom",
            "endpoint": "generate",
            "namespace": "dynamo",
            "instance_id": instance,
            "transport": {"tcp": f"127.0.0.1:9/{instance:x}/dynamo/phantom/generate"},
        }

    async def keep_alive(self) -> None:
        """Renew the entries' times, as a living worker does; without it Dynamo deletes them."""
        while True:
            for bucket in ("mdc", "instances"):
                try:
                    os.utime(self._mirror.source / "v1" / bucket / _NAME)
                except OSError:
                    continue
            await asyncio.sleep(_KEEP_ALIVE_S)

    def close(self) -> None:
        """End the present life."""
        if self.life is not None:
            self.life.close()

    def _mirror_remove(self, publisher: int) -> None:
        for bucket in ("event_sources", "event_channels"):
            path = self._mirror.root / "v1" / bucket / f"phantom-{publisher:x}"
            path.unlink(missing_ok=True)
