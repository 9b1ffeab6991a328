"""An API server of Kubernetes for tests: list, watch and apply over plain HTTP, with faults.

It keeps objects of any kind as JSON, numbers their changes, and speaks the protocol of list and
watch: pages, selectors, resource versions, bookmarks, 410 for forgotten versions, and `Status`
answers. What a real cluster does only when something breaks is an attribute or a call here.
"""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

SLICES = "discovery.k8s.io/v1/endpointslices"
PODS = "v1/pods"
WORKERS = "nvidia.com/v1alpha1/dynamoworkermetadatas"
POOLS = "inference.networking.k8s.io/v1/inferencepools"
KINDS = {
    SLICES: "EndpointSlice",
    PODS: "Pod",
    WORKERS: "DynamoWorkerMetadata",
    POOLS: "InferencePool",
}


class ApiServer:
    """A running server. Its methods may be called from any thread."""

    def __init__(self, namespace: str = "prod") -> None:
        self.namespace = namespace
        self.denied: set[tuple[str, str]] = set()
        """Pairs of a verb and a plural that the role lacks."""
        self.missing: set[str] = set()
        """Plurals of kinds that are not installed."""
        self.token = "secret-token"
        self.answer_with: Callable[[str], web.Response | None] = lambda _verb: None
        """Makes an answer to a verb in place of the usual one; None leaves the usual one."""
        self.is_silent = False
        """Whether watches are accepted and then send nothing."""
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Verb, plural and parameters of each request."""
        self.port = 0
        self._objects: dict[str, dict[str, dict[str, Any]]] = {}
        self._log: list[tuple[int, str, str, dict[str, Any]]] = []
        self._revision = 1000
        self._forgotten = 0
        self._changed: asyncio.Event
        self._streams: dict[web.StreamResponse, tuple[str, web.Request]] = {}
        self._runner: web.AppRunner | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.start()

    # ---- life --------------------------------------------------------------------------------

    def start(self) -> None:
        """Listen, again on the port of the first start."""
        self._call(self._start())

    def stop(self) -> None:
        """Close the port and every stream."""
        self._call(self._stop())

    def close(self) -> None:
        self.stop()

        async def end() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self._call(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def kubeconfig(self, folder: Path) -> str:
        """Write a kubeconfig for this server and return its path."""
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "u", "user": {"token": self.token}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    # ---- objects -----------------------------------------------------------------------------

    def put(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        """Create or replace an object; its uid stays unless the value names one."""
        return self._call(self._put(kind, value))

    def remove(self, kind: str, name: str) -> None:
        self._call(self._remove(kind, name))

    def forget(self) -> None:
        """Forget all resource versions so far, as a compaction of etcd does."""

        async def run() -> None:
            self._revision += 1
            self._forgotten = self._revision
            self._log.clear()

        self._call(run())

    def bookmark(self) -> None:
        """Send the present version on every watch."""

        async def run() -> None:
            self._revision += 1
            for stream, (kind, _) in list(self._streams.items()):
                meta = {"resourceVersion": str(self._revision)}
                await self._write(stream, "BOOKMARK", {"kind": KINDS.get(kind), "metadata": meta})

        self._call(run())

    def send(self, kind: str, line: bytes) -> None:
        """Send bytes on every watch of a kind, without waiting for its reader."""

        async def run() -> None:
            for stream, (of, _) in list(self._streams.items()):
                if of == kind:
                    await stream.write(line)

        asyncio.run_coroutine_threadsafe(run(), self._loop)

    def cut(self) -> None:
        """Break the connections of all watches, without an end of their streams."""

        async def run() -> None:
            for stream, (_, request) in list(self._streams.items()):
                self._streams.pop(stream)
                if request.transport is not None:
                    request.transport.abort()

        self._call(run())

    def watches(self, kind: str) -> int:
        """Open watches of a kind."""
        return sum(of == kind for of, _ in list(self._streams.values()))

    def count(self, verb: str, kind: str) -> int:
        """Requests so far."""
        plural = kind.rpartition("/")[2]
        return sum((v, p) == (verb, plural) for v, p, _ in list(self.requests))

    # ---- inside the loop ---------------------------------------------------------------------

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self) -> None:
        self._changed = asyncio.Event()
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{tail:.*}", self._handle)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _stop(self) -> None:
        for stream, (_, request) in list(self._streams.items()):
            self._streams.pop(stream)
            if request.transport is not None:
                request.transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _put(self, kind: str, value: dict[str, Any]) -> dict[str, Any]:
        self._revision += 1
        value = copy.deepcopy(value)
        meta = value.setdefault("metadata", {})
        known = self._objects.setdefault(kind, {}).get(meta["name"])
        before = known["metadata"]["uid"] if known else f"uid-{self._revision}"
        meta.setdefault("uid", before)
        meta.setdefault("namespace", self.namespace)
        meta["resourceVersion"] = str(self._revision)
        value.setdefault("kind", KINDS.get(kind, "Thing"))
        self._objects[kind][meta["name"]] = value
        self._record("MODIFIED" if known else "ADDED", kind, value)
        return value

    async def _remove(self, kind: str, name: str) -> None:
        self._revision += 1
        value = copy.deepcopy(self._objects[kind].pop(name))
        value["metadata"]["resourceVersion"] = str(self._revision)
        self._record("DELETED", kind, value)

    def _record(self, what: str, kind: str, value: dict[str, Any]) -> None:
        self._log.append((self._revision, what, kind, value))
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        parts = request.path.strip("/").split("/")
        if len(parts) < 4 or parts[0] not in ("api", "apis"):
            return status(404, "NotFound", "no such path")
        root = parts[1:2] if parts[0] == "api" else parts[1:3]
        rest = parts[1 + len(root) :]
        namespace, plural = rest[1], rest[2]
        name = rest[3] if len(rest) > 3 else None
        kind = "/".join([*root, plural])
        watch = request.query.get("watch") in ("true", "1")
        verb = {"PATCH": "patch", "DELETE": "delete"}.get(request.method)
        verb = verb or ("watch" if watch else "get" if name else "list")
        self.requests.append((verb, plural, dict(request.query)))
        if (other := self.answer_with(verb)) is not None:
            return other
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return status(401, "Unauthorized", "Unauthorized")
        if plural in self.missing:
            return web.Response(status=404, text="404 page not found")
        if (verb, plural) in self.denied or namespace != self.namespace:
            return status(403, "Forbidden", f'{plural} is forbidden: User "u" cannot {verb}')
        if request.method == "PATCH":
            return web.json_response(await self._put(kind, await request.json()))
        if name is not None:
            found = self._objects.get(kind, {}).get(name)
            if found is None:
                return status(404, "NotFound", f"{plural} {name} not found")
            if request.method == "DELETE":
                await self._remove(kind, name)
            return web.json_response(found)
        return await (self._watch if watch else self._list)(request, kind)

    async def _list(self, request: web.Request, kind: str) -> web.Response:
        names = sorted(
            name
            for name, value in self._objects.get(kind, {}).items()
            if _matches(request.query, value)
        )
        revision, after = str(self._revision), ""
        if token := request.query.get("continue"):
            revision, after = token.split("|", 1)
            if int(revision) < self._forgotten:
                return status(410, "Expired", "The provided continue parameter is too old")
        names = [name for name in names if name > after]
        limit = int(request.query.get("limit") or len(names) or 1)
        meta: dict[str, Any] = {"resourceVersion": revision}
        if len(names) > limit:
            meta["continue"] = f"{revision}|{names[limit - 1]}"
        items = [self._objects[kind][name] for name in names[:limit]]
        return web.json_response({"kind": "List", "metadata": meta, "items": items})

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        at = int(request.query.get("resourceVersion") or self._revision)
        if at < self._forgotten:
            return status(410, "Expired", f"too old resource version: {at}")
        stream = web.StreamResponse(headers={"Content-Type": "application/json"})
        await stream.prepare(request)
        self._streams[stream] = (kind, request)
        loop = asyncio.get_running_loop()
        end_s = loop.time() + float(request.query.get("timeoutSeconds") or 1800)
        try:
            while loop.time() < end_s and stream in self._streams:
                changed = self._changed
                if self.is_silent:
                    await asyncio.sleep(0.05)
                    continue
                for revision, what, of, value in list(self._log):
                    if revision > at and of == kind and _matches(request.query, value):
                        await self._write(stream, what, value)
                at = self._revision
                try:
                    async with asyncio.timeout(min(0.25, max(end_s - loop.time(), 0.01))):
                        await changed.wait()
                except TimeoutError:
                    pass
        except (ConnectionError, RuntimeError):
            pass
        finally:
            self._streams.pop(stream, None)
        return stream

    async def _write(self, stream: web.StreamResponse, what: str, value: Any) -> None:
        await stream.write(json.dumps({"type": what, "object": value}).encode() + b"\n")


def status(code: int, reason: str, message: str) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "code": code}
    return web.json_response({**body, "reason": reason, "message": message}, status=code)


def _matches(query: Any, value: dict[str, Any]) -> bool:
    labels = value["metadata"].get("labels") or {}
    for pair in filter(None, query.get("labelSelector", "").split(",")):
        key, _, wanted = pair.partition("=")
        if labels.get(key) != wanted:
            return False
    field = query.get("fieldSelector", "")
    return not field or field == f"metadata.name={value['metadata']['name']}"


def pod(
    name: str,
    ip: str,
    *,
    ready: bool = True,
    uid: str | None = None,
    labels: dict[str, str] | None = None,
    **meta: Any,
) -> dict[str, Any]:
    """A pod as the API server shows it, with the fields around those that are read."""
    identity = {"uid": uid} if uid else {}
    return {
        "metadata": {"name": name, "labels": labels or {}, **identity, **meta},
        "spec": {"nodeName": "n1", "containers": [{"name": "main"}]},
        "status": {
            "phase": "Running",
            "podIP": ip,
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True" if ready else "False"},
            ],
            "containerStatuses": [{"name": "main", "ready": ready, "restartCount": 0}],
        },
    }


def endpoint_slice(
    name: str,
    *endpoints: dict[str, Any],
    labels: dict[str, str] | None = None,
    ports: list[dict[str, Any]] | None = None,
    family: str = "IPv4",
) -> dict[str, Any]:
    """An EndpointSlice."""
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "addressType": family,
        "endpoints": list(endpoints),
        "ports": ports if ports is not None else [{"name": "http", "port": 8000}],
    }


def endpoint(
    name: str, ip: str, uid: str, ready: bool | None = True, terminating: bool | None = None
) -> dict[str, Any]:
    """An endpoint of a slice."""
    conditions = {"ready": ready, "serving": ready, "terminating": terminating}
    return {
        "addresses": [ip],
        "conditions": {key: value for key, value in conditions.items() if value is not None},
        "targetRef": {"kind": "Pod", "name": name, "uid": uid},
    }
