"""Discovery through Kubernetes: what Dynamo's workers write into custom resources.

A worker writes its endpoints, model cards and event channels into one `DynamoWorkerMetadata`. Its
pod is ready when an EndpointSlice says so. A worker counts when both hold for the same pod, by name
and uid. In container mode the statuses of containers take the place of EndpointSlices. Instance ids
stand in the entries. Cost of a view: O(workers); only changed resources are decoded again.
Source: `discovery/kube` of the crate `dynamo-runtime` 1.6.1.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from wardrop.config import ConfigError
from wardrop.decoding import shown
from wardrop.dynamo.discovery.entries import BUCKETS, Entry, decode_entry
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.scope import Scope
from wardrop.dynamo.discovery.store_reader import StoreReader
from wardrop.kubernetes.access import Access
from wardrop.kubernetes.environment import own_namespace
from wardrop.kubernetes.objects import (
    ENDPOINT_SLICES,
    PODS,
    EndpointSlice,
    Metadata,
    Pod,
    Resource,
    decoder_of,
)
from wardrop.kubernetes.reflector import Reflector, Timing

LABELS = "nvidia.com/dynamo-discovery-enabled=true"
"""Label of the objects that Dynamo itself selects.

Dynamo sets a second label as well, but its selector holds this label alone.
"""

_MAIN_CONTAINER = "main"
_MODES = ("pod", "container")


class _Data(msgspec.Struct):
    """The entries of one worker by bucket and key. An empty map may be written as null."""

    endpoints: dict[str, msgspec.Raw] | None = None
    model_cards: dict[str, msgspec.Raw] | None = None
    event_channels: dict[str, msgspec.Raw] | None = None
    event_sources: dict[str, msgspec.Raw] | None = None

    @property
    def by_bucket(self) -> Iterator[tuple[str, dict[str, msgspec.Raw]]]:
        """The maps under the names of a store's buckets."""
        maps = (self.endpoints, self.model_cards, self.event_channels, self.event_sources)
        for bucket, found in zip(BUCKETS, maps, strict=True):
            yield bucket, found or {}


class _Spec(msgspec.Struct):
    data: _Data


class _Object(msgspec.Struct):
    metadata: Metadata
    spec: _Spec


@dataclass(frozen=True)
class WorkerMetadata:
    """One `DynamoWorkerMetadata`.

    Attributes:
        metadata: Identity and owner.
        entries: Bucket, key and entry.
        problems: One text per entry that cannot be decoded.
    """

    metadata: Metadata
    entries: tuple[tuple[str, str, Entry], ...]
    problems: tuple[str, ...]

    @property
    def pod_uid(self) -> str | None:
        """Uid of the pod that wrote the object; None where no pod owns it."""
        owners = self.metadata.owner_references or ()
        return next((owner.uid for owner in owners if owner.kind == "Pod"), None)


_decode_object = decoder_of(_Object)


def decode_metadata(text: bytes, place: str) -> WorkerMetadata:
    """A `DynamoWorkerMetadata` from its JSON text. Each entry is decoded alone.

    Raises:
        DecodeError: The object has no data, or another form. Its last valid form then stays.
    """
    found = _decode_object(text, place)
    entries: list[tuple[str, str, Entry]] = []
    problems: list[str] = []
    for bucket, items in found.spec.data.by_bucket:
        for key, raw in items.items():
            try:
                # A copy: a raw value of an entry would keep the whole object in memory.
                entries.append((bucket, key, decode_entry(bucket, key, bytes(raw))))
            except ValueError as error:
                problems.append(f"{place}: {error}")
    return WorkerMetadata(found.metadata, tuple(entries), tuple(problems))


WORKER_METADATA = Resource("nvidia.com", "v1alpha1", "dynamoworkermetadatas", decode_metadata)


class KubernetesSource:
    """Follows the workers of one namespace of a cluster.

    During an outage of the API server the last view stays in force, and `last_error` says why.

    Args:
        namespace: Namespace of the cluster; that of this pod where it is empty.
        debounce_s: Shortest time between two views.
        environment: Variables of the process. `DYN_KUBE_DISCOVERY_MODE` is pod or container.
        scope: Dynamo's namespaces that the frontends see.
        timing: Deadlines and pauses.

    Raises:
        ConfigError: The mode does not exist.
    """

    def __init__(
        self,
        namespace: str,
        debounce_s: float,
        environment: Mapping[str, str],
        scope: Scope | None = None,
        timing: Timing | None = None,
    ) -> None:
        mode = environment.get("DYN_KUBE_DISCOVERY_MODE", "pod")
        if mode not in _MODES:
            raise ConfigError(
                f"got DYN_KUBE_DISCOVERY_MODE={shown(mode)}, expected one of {', '.join(_MODES)}"
            )
        self.namespace = namespace or own_namespace(environment)
        self._debounce_s = debounce_s
        self._reader = StoreReader(scope)
        self._changed = asyncio.Event()
        self._access = Access(environment)
        changed = self._changed.set
        readiness = PODS if mode == "container" else ENDPOINT_SLICES
        self._readiness = Reflector(
            self._access, readiness, self.namespace, changed, labels=LABELS, timing=timing
        )
        self._workers = Reflector(
            self._access, WORKER_METADATA, self.namespace, changed, timing=timing
        )

    @property
    def reflectors(self) -> tuple[Reflector, Reflector]:
        """Readiness, then the workers' own resources."""
        return self._readiness, self._workers

    @property
    def name(self) -> str:
        """The namespace that is followed."""
        return f"Kubernetes namespace {self.namespace}"

    @property
    def last_error(self) -> str | None:
        """Why one of the two kinds cannot be read now; None when both are followed."""
        errors = [each.error for each in self.reflectors if each.error]
        return "; ".join(errors) or None

    @property
    def answered_unix_s(self) -> float | None:
        """Up to when the view is known to be fresh; None before the first lists."""
        times = [each.answered_unix_s for each in self.reflectors]
        return None if None in times else min(time for time in times if time is not None)

    def frontends_restarted(self) -> None:
        """Report to the reader that a frontend has no memory of the workers any more."""
        self._reader.forget_order()

    async def views(self) -> AsyncIterator[FleetView]:
        """A view once both kinds are listed, or empty when they cannot be; then each change."""
        tasks = [
            asyncio.create_task(each.run(), name=each.resource.name) for each in self.reflectors
        ]
        last: FleetView | None = None
        try:
            while True:
                if self._is_synced:
                    view = self._view()
                    if view != last:
                        yield view
                    last = view
                elif last is None and self.last_error:
                    last = FleetView()
                    yield last
                # The error of a first list sets no event, so the wait has an end.
                try:
                    async with asyncio.timeout(None if self._is_synced else self._debounce_s):
                        await self._changed.wait()
                except TimeoutError:
                    continue
                await asyncio.sleep(self._debounce_s)
                self._changed.clear()
        finally:
            for task in tasks:
                task.cancel()
            try:
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                await self._access.forget()

    @property
    def _is_synced(self) -> bool:
        return all(each.is_synced for each in self.reflectors)

    def _view(self) -> FleetView:
        problems = [problem for each in self.reflectors for problem in each.problems]
        content: dict[str, dict[str, Entry]] = {bucket: {} for bucket in BUCKETS}
        ready = ready_pods(self._readiness.objects)
        for name, worker in sorted(self._workers.objects.items()):
            uids = ready.get(name, set())
            if len(uids) > 1:
                problems.append(f"{name}: two pods of this name are ready; the worker is left out")
            elif uids and worker.pod_uid in uids:
                problems += worker.problems
                for bucket, key, entry in worker.entries:
                    content[bucket][f"{name}/{key}"] = entry
        return self._reader.read(content, tuple(problems))


def ready_pods(objects: Mapping[str, Any]) -> dict[str, set[str]]:
    """Uids of the ready pods by the name of their `DynamoWorkerMetadata`.

    Args:
        objects: EndpointSlices, or pods in container mode.
    """
    ready: dict[str, set[str]] = {}
    for each in objects.values():
        pairs = _of_pod(each) if isinstance(each, Pod) else _of_slice(each)
        for name, uid in pairs:
            if name and uid:
                ready.setdefault(name, set()).add(uid)
    return ready


def _of_slice(found: EndpointSlice) -> Iterator[tuple[str, str]]:
    for endpoint in found.endpoints or ():
        # Dynamo reads an absent `ready` as false.
        if endpoint.conditions.ready is True and endpoint.target_ref is not None:
            yield endpoint.target_ref.name, endpoint.target_ref.uid


def _of_pod(pod: Pod) -> Iterator[tuple[str, str]]:
    for container in pod.status.container_statuses or ():
        if container.ready:
            main = container.name == _MAIN_CONTAINER
            name = pod.metadata.name if main else f"{pod.metadata.name}-{container.name}"
            yield name, pod.metadata.uid
