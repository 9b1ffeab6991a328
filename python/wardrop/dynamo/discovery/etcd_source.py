"""Discovery through etcd: the keys of the file store, over etcd's JSON gateway (API version 3).

One range read gives a consistent view. A watch that starts after the revision of the read reports
the next change. A change makes the range be read whole again (a fleet of 1,000 workers is about
5 MB), at most once per poll interval.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Iterable, Sequence

import aiohttp
import msgspec

from wardrop.decoding import decode_json
from wardrop.dynamo.backoff import Backoff
from wardrop.dynamo.discovery.entries import BUCKETS, MAX_ENTRIES, Entry, decode_entry
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.scope import Scope
from wardrop.dynamo.discovery.store_reader import StoreReader

_PREFIX = "v1/"
_REQUEST_TIMEOUT_S = 5.0
_WATCH_S = 60.0
"""The range is read again after this time without a change, in case the watch is dead."""
_MAX_BACKOFF_S = 5.0
_MAX_RANGE_BYTES = 256 << 20
"""A larger answer of etcd is refused; 10,000 workers are about 50 MB."""
_MAX_WATCH_LINE_BYTES = 1 << 20
"""A longer line of the watch can only be an event, so it counts as a change without decoding."""


class _Pair(msgspec.Struct):
    """A key and its value, both in base64."""

    key: str
    value: str = ""


class _Header(msgspec.Struct):
    revision: int | str


class _Range(msgspec.Struct):
    """Answer to a range read. etcd writes 64-bit numbers as texts."""

    header: _Header
    kvs: list[_Pair] | None = None


class _WatchResult(msgspec.Struct):
    canceled: bool = False
    events: list[msgspec.Raw] | None = None


class _WatchLine(msgspec.Struct):
    result: _WatchResult | None = None


_RANGE = msgspec.json.Decoder(_Range)
_WATCH = msgspec.json.Decoder(_WatchLine)


class EtcdSource:
    """Reads and watches the prefix `v1/` of an etcd, and tries the endpoints in turn.

    During an outage the last view stays in force, and `last_error` has the reason.

    Args:
        endpoints: Base addresses of etcd.
        poll_interval_s: Shortest time between two range reads.
        scope: Namespaces that the frontends see.
    """

    def __init__(
        self, endpoints: Sequence[str], poll_interval_s: float, scope: Scope | None = None
    ) -> None:
        if not endpoints:
            raise ValueError("got no etcd endpoint, expected at least one such as http://etcd:2379")
        self.endpoints = [endpoint.rstrip("/") for endpoint in endpoints]
        self.last_error: str | None = None
        self.answered_unix_s: float | None = None
        self._poll_interval_s = poll_interval_s
        self._reader = StoreReader(scope)

    @property
    def name(self) -> str:
        """The endpoints."""
        return f"etcd {', '.join(self.endpoints)}"

    def frontends_restarted(self) -> None:
        """Report that a frontend lost its memory of the store, to the reader."""
        self._reader.forget_order()

    async def views(self) -> AsyncIterator[FleetView]:
        """A view at once (empty when etcd does not answer), then a view after each change."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT_S)
        backoff = Backoff(self._poll_interval_s, _MAX_BACKOFF_S)
        attempt, yielded = 0, False
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                endpoint = self.endpoints[attempt % len(self.endpoints)]
                try:
                    view, revision = await self._range(session, endpoint)
                    self.last_error, yielded = None, True
                    self.answered_unix_s = time.time()
                    backoff.reset()
                    yield view
                    await asyncio.sleep(self._poll_interval_s)
                    await self._await_change(session, endpoint, revision + 1)
                except Exception as error:
                    # Regardless of the answers of etcd, the last view stays in force and the next
                    # endpoint is asked: discovery must not end the router.
                    self.last_error = f"{endpoint}: {type(error).__name__}: {error}"
                    attempt += 1
                    if not yielded:
                        yielded = True
                        yield FleetView()
                    await asyncio.sleep(backoff.next_s())

    async def _range(self, session: aiohttp.ClientSession, endpoint: str) -> tuple[FleetView, int]:
        body = {"key": _base64(_PREFIX), "range_end": _base64(_range_end(_PREFIX))}
        async with session.post(f"{endpoint}/v3/kv/range", json=body) as answer:
            answer.raise_for_status()
            text = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 20):
                text += chunk
                if len(text) > _MAX_RANGE_BYTES:
                    break
        answered = decode_json(_RANGE, bytes(text), f"{endpoint}/v3/kv/range", _MAX_RANGE_BYTES)
        content, problems = read_pairs(
            (pair.key, pair.value) for pair in (answered.kvs or [])[: len(BUCKETS) * MAX_ENTRIES]
        )
        return self._reader.read(content, tuple(problems)), int(answered.header.revision)

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
                rest = bytearray()
                async for chunk in answer.content.iter_any():
                    rest += chunk
                    while (end := rest.find(b"\n")) >= 0:
                        if _is_change(bytes(rest[:end]), endpoint):
                            return
                        del rest[: end + 1]
                    if len(rest) > _MAX_WATCH_LINE_BYTES:
                        return
        except TimeoutError:
            return


def _is_change(line: bytes, endpoint: str) -> bool:
    if not line.strip():
        return False
    decoded = decode_json(_WATCH, line, f"{endpoint}/v3/watch", _MAX_RANGE_BYTES)
    return decoded.result is not None and bool(decoded.result.canceled or decoded.result.events)


def read_pairs(
    pairs: Iterable[tuple[str, str]],
) -> tuple[dict[str, dict[str, Entry]], list[str]]:
    """Entries by bucket and key, and one text per pair that cannot be read.

    Each pair is decoded alone: a key that is no text or a value that is no entry costs itself.

    Args:
        pairs: Keys and values in base64, as etcd's JSON gateway writes them.
    """
    content: dict[str, dict[str, Entry]] = {bucket: {} for bucket in BUCKETS}
    problems: list[str] = []
    for coded_key, coded_value in pairs:
        try:
            path = base64.b64decode(coded_key, validate=True).decode()
            bucket, _, key = path.removeprefix(_PREFIX).partition("/")
            if bucket in content and len(content[bucket]) < MAX_ENTRIES:
                value = base64.b64decode(coded_value, validate=True)
                content[bucket][key] = decode_entry(bucket, key, value)
        except ValueError as error:
            problems.append(f"etcd: a pair cannot be read: {error}")
    return content, problems


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _range_end(prefix: str) -> str:
    """The first key after all keys that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)
