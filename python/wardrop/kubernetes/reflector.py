"""The objects of one kind in one namespace, as they are now: a list, then a watch.

A list gives all objects and a resource version. A watch from this version reports each later
change. The watch of `kubernetes_asyncio` is not used, because it cannot do the following:

* An object that cannot be decoded costs itself: its last valid form stays, and others go on.
* A stream on which nothing arrives for `silent_s` counts as dead. Bookmarks come once a minute.
* Answers, lines and the number of objects are limited.
* An outage removes nothing: the objects of the last answer stay, and `error` says why.

A version that the server has forgotten (410 Gone) leads to a new list. Every other failure leads to
a new watch from the last version. Cost: O(objects) for a list, O(1) for a change.
Source: "Efficient detection of changes" in the API concepts of Kubernetes.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from wardrop.decoding import DecodeError, decode_json, shown
from wardrop.dynamo.backoff import Backoff
from wardrop.kubernetes.access import Access, AccessError
from wardrop.kubernetes.objects import MAX_OBJECT_BYTES, Name, Resource

MAX_OBJECTS = 16_384
"""Objects of one kind that are kept."""

_PAGE_OBJECTS = 250
_MAX_PAGE_BYTES = 64 << 20
_MAX_STATUS_BYTES = 64 << 10
_MAX_PROBLEMS = 64
_MAX_PROBLEM_CHARACTERS = 300
_LINE_BYTES = MAX_OBJECT_BYTES + 1024
"""An event is its object and a few words around it."""

_GONE = 410
_HINTS = {
    401: "the credentials are not valid",
    404: "the kind is not installed in the cluster",
    429: "the API server has too many requests",
}


@dataclass(frozen=True)
class Timing:
    """Deadlines and pauses, in seconds.

    Attributes:
        request_s: Time for one page of a list, and for the first byte of a watch.
        silent_s: Time after which a watch without any line counts as dead.
        watch_s: Time after which the API server ends a watch, as asked.
        first_pause_s: Pause before the first new attempt.
        longest_pause_s: Longest pause between two attempts.
        steady_s: A watch that lasted so long was no failure, so the pauses start again.
    """

    request_s: float = 30.0
    silent_s: float = 150.0
    watch_s: float = 300.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 30.0
    steady_s: float = 5.0


@dataclass
class Counts:
    """What happened since the start; no figure falls.

    Attributes:
        lists: Complete lists.
        watches: Watches that the API server accepted.
        expired: Resource versions that the API server had forgotten.
        silent: Watches on which nothing arrived in time.
        failures: Attempts that failed for another reason.
        refused_objects: Objects, lines and events that could not be decoded or were too many.
    """

    lists: int = 0
    watches: int = 0
    expired: int = 0
    silent: int = 0
    failures: int = 0
    refused_objects: int = 0


class ApiError(RuntimeError):
    """The API server refuses a request.

    Attributes:
        retry_after_s: Pause that the API server asks for; 0 for none.
    """

    retry_after_s: float = 0.0


class ExpiredError(ApiError):
    """The API server has forgotten the resource version."""


class _Identity(msgspec.Struct, rename="camel"):
    name: Name
    uid: str = ""
    resource_version: str = ""


class _Identified(msgspec.Struct):
    metadata: _Identity


class _Version(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str | None = msgspec.field(default=None, name="continue")


class _Versioned(msgspec.Struct):
    metadata: _Version


class _Page(msgspec.Struct):
    metadata: _Version
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    message: str = ""
    reason: str = ""
    code: int = 0


@dataclass(frozen=True)
class _Taken:
    """A name, and the object to keep under it; None for none."""

    name: str
    value: Any


_IDENTIFIED = msgspec.json.Decoder(_Identified)
_VERSIONED = msgspec.json.Decoder(_Versioned)
_PAGE = msgspec.json.Decoder(_Page)
_EVENT = msgspec.json.Decoder(_Event)
_STATUS = msgspec.json.Decoder(_Status)


class Reflector:
    """Follows one kind of objects in one namespace.

    Args:
        access: The API server.
        resource: The kind.
        namespace: Namespace of the objects.
        changed: Called after each change of `objects`, and when `is_synced` becomes true.
        labels: Labels that the objects must have, as `kubectl -l` takes them.
        name: Name of the only object; all objects where it is empty.
        timing: Deadlines and pauses.
    """

    def __init__(
        self,
        access: Access,
        resource: Resource,
        namespace: str,
        changed: Callable[[], object],
        *,
        labels: str = "",
        name: str = "",
        timing: Timing | None = None,
    ) -> None:
        self.resource = resource
        self.namespace = namespace
        self.objects: dict[str, Any] = {}
        """Objects by name, of the kind's type. It is replaced or changed in place."""
        self.is_synced = False
        """Whether one list was complete."""
        self.error: str | None = None
        """Why the last attempt failed; None while the API server answers."""
        self.answered_unix_s: float | None = None
        """When the API server last sent something; None before."""
        self.counts = Counts()
        self._access = access
        self._changed = changed
        self._query = {
            key: value
            for key, value in (
                ("labelSelector", labels),
                ("fieldSelector", f"metadata.name={name}" if name else ""),
            )
            if value
        }
        self._timing = timing or Timing()
        self._revision: str | None = None
        self._problems: dict[str, str] = {}
        self._has_progress = False

    @property
    def problems(self) -> tuple[str, ...]:
        """One text per object that cannot be used as it is now; at most 64."""
        return tuple(self._problems.values())

    async def run(self) -> None:
        """Follow until cancelled. No answer of the API server ends it."""
        timing = self._timing
        backoff = Backoff(timing.first_pause_s, timing.longest_pause_s)
        while True:
            started_s = time.monotonic()
            self._has_progress = False
            asked_s = 0.0
            try:
                if self._revision is None:
                    await self._list()
                await self._watch()
            except ExpiredError as error:
                # The objects stay until the next list is complete.
                self._revision = None
                self.counts.expired += 1
                self.error = str(error)
            except Exception as error:
                self._fail(error)
                asked_s = getattr(error, "retry_after_s", 0.0)
                if isinstance(error, aiohttp.ClientSSLError) or "(401)" in (self.error or ""):
                    await self._access.forget()
            is_steady = time.monotonic() - started_s >= timing.steady_s
            if self._has_progress or (is_steady and self.error is None):
                backoff.reset()
            # Many routers lose the API server at one moment and must not come back at one moment.
            pause_s = backoff.next_s() * random.uniform(0.5, 1.0)
            await asyncio.sleep(max(pause_s, min(asked_s, timing.longest_pause_s)))

    def _fail(self, error: Exception) -> None:
        self.counts.failures += 1
        what = f"{self.resource.name} in namespace {self.namespace}"
        if isinstance(error, ApiError | AccessError):
            self.error = str(error)
        elif isinstance(error, TimeoutError):
            self.error = f"{what}: the API server did not answer in time"
        else:
            self.error = f"{what}: {type(error).__name__}: {error}"[:300]

    # ---- list -------------------------------------------------------------------------------

    async def _list(self) -> None:
        """Replace all objects by those of a complete list."""
        found: dict[str, Any] = {}
        problems: dict[str, str] = {}
        query = {**self._query, "limit": str(_PAGE_OBJECTS)}
        revision = ""
        while True:
            page = await self._page(query)
            for item in page.items or ():
                # A copy: a raw value would keep the whole page in memory.
                taken = self._take(bytes(item), problems)
                if taken is not None and taken.value is not None:
                    found[taken.name] = taken.value
            # All pages of a list show the state at the version of the first one.
            revision = revision or page.metadata.resource_version
            if not page.metadata.continue_:
                break
            if len(found) >= MAX_OBJECTS:
                self._refuse("", f"{self.resource.name}: got more than {MAX_OBJECTS}", problems)
                break
            query["continue"] = page.metadata.continue_
        is_new = (found, problems) != (self.objects, self._problems) or not self.is_synced
        self.objects, self._problems = found, problems
        self._revision = revision
        self.is_synced = True
        self.counts.lists += 1
        if is_new:
            self._changed()

    async def _page(self, query: dict[str, str]) -> _Page:
        seconds = aiohttp.ClientTimeout(total=self._timing.request_s)
        answer = await self._access.get(self.resource.path(self.namespace), query, seconds)
        async with answer:
            await self._check(answer, "list")
            text = bytearray()
            async for chunk in answer.content.iter_any():
                text += chunk
                if len(text) > _MAX_PAGE_BYTES:
                    raise ApiError(
                        f"list of {self.resource.name}: got more than {_MAX_PAGE_BYTES} bytes for "
                        f"{_PAGE_OBJECTS} objects"
                    )
        self._heard()
        place = f"list of {self.resource.name}"
        return decode_json(_PAGE, bytes(text), place, _MAX_PAGE_BYTES)

    # ---- watch ------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Apply changes until the stream ends, fails or falls silent.

        Raises:
            ExpiredError: A new list is needed.
            ApiError: The API server refuses the watch, or reports an error on it.
        """
        timing = self._timing
        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._revision or "",
            # Routers that started together must not watch anew together.
            "timeoutSeconds": str(max(1, int(timing.watch_s * random.uniform(0.8, 1.2)))),
        }
        seconds = aiohttp.ClientTimeout(
            total=None, sock_connect=timing.request_s, sock_read=timing.silent_s
        )
        async with asyncio.timeout(timing.request_s):
            answer = await self._access.get(self.resource.path(self.namespace), query, seconds)
        async with answer:
            await self._check(answer, "watch")
            self.counts.watches += 1
            self._heard()
            if self._problems.pop("", None) is not None:
                self._changed()
            try:
                async for line in self._lines(answer.content):
                    self._heard()
                    if line.strip():
                        self._apply(line)
            except TimeoutError:
                # Not an error yet: a quiet fleet behind a server without bookmarks looks the same.
                self.counts.silent += 1

    async def _lines(self, content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
        """Lines of a stream. A line over the limit is dropped alone.

        Raises:
            ApiError: The stream ended within a line.
        """
        rest = bytearray()
        is_dropping = False
        async for chunk in content.iter_any():
            start = 0
            while (end := chunk.find(b"\n", start)) >= 0:
                rest += chunk[start:end]
                start = end + 1
                if is_dropping or len(rest) > _LINE_BYTES:
                    self._refuse("", f"{self.resource.name}: got an event over {_LINE_BYTES} bytes")
                else:
                    yield bytes(rest)
                is_dropping = False
                rest.clear()
            rest += chunk[start:]
            if len(rest) > _LINE_BYTES:
                is_dropping = True
                rest.clear()
        if rest:
            # A server ends a watch between two lines. A page of a proxy ends anywhere.
            raise ApiError(f"watch of {self.resource.name}: the answer ended within a line")

    def _apply(self, line: bytes) -> None:
        """Apply one event of a watch.

        Raises:
            ExpiredError, ApiError: The event is an error.
        """
        try:
            event = decode_json(_EVENT, line, f"watch of {self.resource.name}", _LINE_BYTES)
        except DecodeError as error:
            self._refuse("", str(error))
            return
        text = bytes(event.object)
        if event.type == "ERROR":
            self._raise_status(text)
        try:
            self._revision = self._version(text) or self._revision
        except DecodeError as error:
            self._refuse("", str(error))
            return
        self._has_progress = True
        if event.type in ("ADDED", "MODIFIED", "DELETED"):
            self._change(text, is_gone=event.type == "DELETED")
        elif event.type != "BOOKMARK":
            self._refuse("", f"{self.resource.name}: got an event {shown(event.type)}")

    def _change(self, text: bytes, is_gone: bool) -> None:
        """Keep or remove one object, as an event says."""
        taken = self._take(text, self._problems)
        if taken is None:
            return
        name, value = taken.name, None if is_gone else taken.value
        if is_gone:
            self._problems.pop(name, None)
        before = self.objects.get(name)
        if value is None:
            self.objects.pop(name, None)
        elif before is None and len(self.objects) >= MAX_OBJECTS:
            self._refuse("", f"{self.resource.name}: got more than {MAX_OBJECTS} objects")
            return
        else:
            self.objects[name] = value
        if value != before:
            self._changed()

    def _version(self, text: bytes) -> str:
        place = f"event of {self.resource.name}"
        return decode_json(_VERSIONED, text, place, MAX_OBJECT_BYTES).metadata.resource_version

    def _raise_status(self, text: bytes) -> None:
        place = f"watch of {self.resource.name}"
        try:
            status = decode_json(_STATUS, text, place, _MAX_STATUS_BYTES)
        except DecodeError:
            status = _Status()
        message = f"{place} in namespace {self.namespace}: {status.message or 'an error'}"[:300]
        if status.code == _GONE or status.reason in ("Expired", "Gone"):
            raise ExpiredError(f"{message} ({_GONE}); all objects are listed again")
        raise ApiError(message)

    # ---- objects ----------------------------------------------------------------------------

    def _take(self, text: bytes, problems: dict[str, str]) -> _Taken | None:
        """An object of the API server; None when not even its name can be read.

        An invalid object keeps its last valid form, unless a later object of the same name took
        its place, which has another uid.
        """
        place = self.resource.name
        try:
            identity = decode_json(_IDENTIFIED, text, place, MAX_OBJECT_BYTES).metadata
        except DecodeError as error:
            self._refuse("", str(error), problems)
            return None
        try:
            value = self.resource.decode(text, f"{place} {identity.name}")
        except ValueError as error:
            self._refuse(identity.name, str(error), problems)
            known = self.objects.get(identity.name)
            value = known if known and known.metadata.uid == identity.uid else None
        else:
            problems.pop(identity.name, None)
        return _Taken(identity.name, value)

    def _refuse(self, name: str, text: str, problems: dict[str, str] | None = None) -> None:
        problems = self._problems if problems is None else problems
        self.counts.refused_objects += 1
        if problems.get(name) == text[:_MAX_PROBLEM_CHARACTERS] or (
            name not in problems and len(problems) >= _MAX_PROBLEMS
        ):
            return
        problems[name] = text[:_MAX_PROBLEM_CHARACTERS]
        if problems is self._problems:
            self._changed()

    # ---- answers ----------------------------------------------------------------------------

    def _heard(self) -> None:
        self.answered_unix_s = time.time()
        self.error = None

    async def _check(self, answer: aiohttp.ClientResponse, verb: str) -> None:
        """Refuse an answer that is no success.

        Raises:
            ExpiredError, ApiError: The text names verb, kind and namespace.
        """
        if answer.status == 200:
            return
        text = await answer.content.read(_MAX_STATUS_BYTES)
        try:
            message = decode_json(_STATUS, text, "status", _MAX_STATUS_BYTES).message
        except DecodeError:
            message = ""
        kind, status = self.resource.name, answer.status
        where = f"cannot {verb} {kind} in namespace {self.namespace} ({status})"
        if status == _GONE:
            raise ExpiredError(f"{where}; all objects are listed again")
        if status == 403:
            raise ApiError(
                f"{where}: the role of this service account lacks verb {verb!r} on resource "
                f"{self.resource.plural!r} of API group {self.resource.group!r}; add a Role with "
                "verbs list and watch"
            )
        hint = _HINTS.get(status) or message[:200] or answer.reason or "no reason"
        failure = ApiError(f"{where}: {hint}")
        failure.retry_after_s = _seconds(answer.headers.get("Retry-After"))
        raise failure


def _seconds(text: str | None) -> float:
    """Seconds of a `Retry-After`; 0 where it holds none."""
    return float(text) if text and text.isdecimal() and len(text) < 6 else 0.0
