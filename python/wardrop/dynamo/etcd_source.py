"""Discovery through etcd: the same keys as the file store, over etcd's v3 JSON gateway.

One range read gives a consistent view; a watch from the revision after it wakes us for the next.
Entries are read whole again on a change (a fleet of 1,000 workers is about 5 MB), at most once per
poll interval, which is also how often we look without a watch.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from typing import cast

import aiohttp

from wardrop.dynamo.store import BUCKETS, MAX_ENTRY_BYTES, JsonObject
from wardrop.dynamo.view import View, read_view

_PREFIX = "v1/"
_REQUEST_TIMEOUT_S = 5.0
_WATCH_S = 60.0
_MAX_BACKOFF_S = 5.0


class EtcdSource:
    """Reads and watches `v1/` of an etcd; tries the endpoints in turn.

    An outage keeps the last view and is told in `trouble`.
    """

    def __init__(self, endpoints: Sequence[str], poll_interval_s: float) -> None:
        if not endpoints:
            raise ValueError("got no etcd endpoint, expected at least one such as http://etcd:2379")
        self.endpoints = [endpoint.rstrip("/") for endpoint in endpoints]
        self._poll_interval_s = poll_interval_s
        self.trouble: str | None = None

    @property
    def name(self) -> str:
        """The endpoints."""
        return f"etcd {', '.join(self.endpoints)}"

    async def views(self) -> AsyncIterator[View]:
        """A view at once (empty when etcd is away), then one after each change."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
        backoff_s, at, yielded = self._poll_interval_s, 0, False
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                endpoint = self.endpoints[at % len(self.endpoints)]
                try:
                    view, revision = await self._range(session, endpoint)
                    self.trouble, backoff_s, yielded = None, self._poll_interval_s, True
                    yield view
                    await asyncio.sleep(self._poll_interval_s)
                    await self._await_change(session, endpoint, revision + 1)
                except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError) as error:
                    self.trouble = f"{endpoint}: {type(error).__name__}: {error}"
                    at += 1
                    if not yielded:
                        yielded = True
                        yield View()
                    await asyncio.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    async def _range(self, session: aiohttp.ClientSession, endpoint: str) -> tuple[View, int]:
        body = {"key": _b64(_PREFIX), "range_end": _b64(_range_end(_PREFIX))}
        async with session.post(f"{endpoint}/v3/kv/range", json=body) as answer:
            answer.raise_for_status()
            content = cast(JsonObject, await answer.json(content_type=None))
        snapshot: dict[str, dict[str, JsonObject]] = {bucket: {} for bucket in BUCKETS}
        for pair in cast(list[dict[str, str]], content.get("kvs", [])):
            bucket, _, key = base64.b64decode(pair["key"]).decode()[len(_PREFIX) :].partition("/")
            value = base64.b64decode(pair.get("value", ""))
            if bucket in snapshot and len(value) <= MAX_ENTRY_BYTES:
                entry: object = json.loads(value)
                if isinstance(entry, dict):
                    snapshot[bucket][key] = cast(JsonObject, entry)
        header = cast(dict[str, str], content["header"])
        return read_view(snapshot), int(header["revision"])

    async def _await_change(
        self, session: aiohttp.ClientSession, endpoint: str, revision: int
    ) -> None:
        """Return when a key changed, or after a minute without news (the range is read again)."""
        create = {
            "key": _b64(_PREFIX),
            "range_end": _b64(_range_end(_PREFIX)),
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
                    if result.get("canceled"):
                        return
                    if result.get("events"):
                        return
        except TimeoutError:
            return


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _range_end(prefix: str) -> str:
    """The first key after all that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
