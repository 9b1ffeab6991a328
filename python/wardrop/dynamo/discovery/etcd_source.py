"""Discovery through etcd: the keys of the file store, over etcd's JSON gateway (API version 3).

One range read gives a consistent view. A watch that starts after the revision of the read reports
the next change. A change makes the range be read whole again (a fleet of 1,000 workers is about
5 MB), at most once per poll interval.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from typing import cast

import aiohttp

from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.store_reader import (
    BUCKETS,
    MAX_ENTRY_BYTES,
    JsonObject,
    read_fleet_view,
)

_PREFIX = "v1/"
_REQUEST_TIMEOUT_S = 5.0
_WATCH_S = 60.0
"""The range is read again after this time without a change, in case the watch is dead."""
_MAX_BACKOFF_S = 5.0


class EtcdSource:
    """Reads and watches the prefix `v1/` of an etcd, and tries the endpoints in turn.

    During an outage the last view stays in force, and `last_error` tells why.
    """

    def __init__(self, endpoints: Sequence[str], poll_interval_s: float) -> None:
        if not endpoints:
            raise ValueError("got no etcd endpoint, expected at least one such as http://etcd:2379")
        self.endpoints = [endpoint.rstrip("/") for endpoint in endpoints]
        self.last_error: str | None = None
        self._poll_interval_s = poll_interval_s

    @property
    def name(self) -> str:
        """The endpoints."""
        return f"etcd {', '.join(self.endpoints)}"

    async def views(self) -> AsyncIterator[FleetView]:
        """A view at once (empty when etcd does not answer), then a view after each change."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
        backoff_s, attempt, yielded = self._poll_interval_s, 0, False
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                endpoint = self.endpoints[attempt % len(self.endpoints)]
                try:
                    view, revision = await self._range(session, endpoint)
                    self.last_error, backoff_s, yielded = None, self._poll_interval_s, True
                    yield view
                    await asyncio.sleep(self._poll_interval_s)
                    await self._await_change(session, endpoint, revision + 1)
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                    self.last_error = f"{endpoint}: {type(error).__name__}: {error}"
                    attempt += 1
                    if not yielded:
                        yielded = True
                        yield FleetView()
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    async def _range(self, session: aiohttp.ClientSession, endpoint: str) -> tuple[FleetView, int]:
        body = {"key": _base64(_PREFIX), "range_end": _base64(_range_end(_PREFIX))}
        async with session.post(f"{endpoint}/v3/kv/range", json=body) as answer:
            answer.raise_for_status()
            answered = cast(JsonObject, await answer.json(content_type=None))
        content: dict[str, dict[str, JsonObject]] = {bucket: {} for bucket in BUCKETS}
        for pair in cast(list[dict[str, str]], answered.get("kvs", [])):
            bucket, _, key = base64.b64decode(pair["key"]).decode()[len(_PREFIX) :].partition("/")
            value = base64.b64decode(pair.get("value", ""))
            if bucket in content and len(value) <= MAX_ENTRY_BYTES:
                entry: object = json.loads(value)
                if isinstance(entry, dict):
                    content[bucket][key] = cast(JsonObject, entry)
        header = cast(dict[str, str], answered["header"])
        return read_fleet_view(content), int(header["revision"])

    async def _await_change(
        self, session: aiohttp.ClientSession, endpoint: str, revision: int
    ) -> None:
        """Return when a key changed since `revision`, or after `_WATCH_S` without a change."""
        create = {
            "key": _base64(_PREFIX),
            "range_end": _base64(_range_end(_PREFIX)),
            "start_revision": str(revision),
        }
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_REQUEST_TIMEOUT_S)
        body = {"create_request": create}
        try:
            async with (
                asyncio.timeout(_WATCH_S),
                session.post(f"{endpoint}/v3/watch", json=body, timeout=timeout) as answer,
            ):
                answer.raise_for_status()
                async for line in answer.content:
                    result = cast(JsonObject, json.loads(line).get("result", {}))
                    if result.get("canceled") or result.get("events"):
                        return
        except TimeoutError:
            return


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _range_end(prefix: str) -> str:
    """The first key after all keys that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
