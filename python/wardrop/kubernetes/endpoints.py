"""Addresses of the ready pods behind an `InferencePool`, a `Service` or labels.

`EndpointFollower` keeps the addresses of one selector up to date. A pod that is not ready, or is
being deleted, has no address here. An outage of the API server removes no address. Cost of an
update: O(pods).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wardrop.decoding import shown
from wardrop.kubernetes.access import Access
from wardrop.kubernetes.objects import (
    ENDPOINT_SLICES,
    INFERENCE_POOLS,
    PODS,
    EndpointSlice,
    InferencePool,
    Pod,
)
from wardrop.kubernetes.reflector import Reflector, Timing
from wardrop.kubernetes.selector import Endpoint, EndpointSelector

_SERVICE_LABEL = "kubernetes.io/service-name"
_USUAL_PORT = "http"
_FAMILIES = ("IPv4", "IPv6")


class EndpointFollower:
    """Follows the endpoints of one selector.

    Args:
        selector: A checked selector.
        access: The API server.
        own: Namespace of this pod.
        changed: Called after each change of `endpoints`.
        timing: Deadlines and pauses.
    """

    def __init__(
        self,
        selector: EndpointSelector,
        access: Access,
        own: str,
        changed: Callable[[], object],
        timing: Timing | None = None,
    ) -> None:
        self.selector = selector
        self.endpoints: tuple[Endpoint, ...] = ()
        """The endpoints of the last answers, sorted."""
        self._access = access
        self._own = own
        self._changed = changed
        self._timing = timing
        self._event = asyncio.Event()
        self._pool: Reflector | None = None
        self._pods: Reflector | None = None
        self._task: asyncio.Task[None] | None = None
        self._labels: str | None = None
        self._problems: list[str] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """One text per object that cannot be used."""
        found = [text for each in self._reflectors for text in each.problems]
        return (*found, *self._problems)

    @property
    def error(self) -> str | None:
        """Why the API server cannot be asked now; None while it answers."""
        errors = [each.error for each in self._reflectors if each.error]
        return f"{self.selector.what}: {errors[0]}" if errors else None

    @property
    def answered_unix_s(self) -> float | None:
        """Up to when the endpoints are known to be fresh; None before the first list."""
        times = [each.answered_unix_s for each in self._reflectors]
        known = [time for time in times if time is not None]
        return min(known) if known and len(known) == len(times) else None

    @property
    def _reflectors(self) -> list[Reflector]:
        return [each for each in (self._pool, self._pods) if each is not None]

    async def run(self) -> None:
        """Follow until cancelled."""
        selector = self.selector
        pool: asyncio.Task[None] | None = None
        try:
            if selector.inference_pool:
                namespace, name = selector.located(selector.inference_pool, self._own)
                self._pool = Reflector(
                    self._access, INFERENCE_POOLS, namespace, self._event.set, name=name,
                    timing=self._timing,
                )  # fmt: skip
                pool = asyncio.create_task(self._pool.run(), name=selector.what)
            elif selector.service:
                namespace, name = selector.located(selector.service, self._own)
                self._follow(
                    Reflector(
                        self._access, ENDPOINT_SLICES, namespace, self._event.set,
                        labels=f"{_SERVICE_LABEL}={name}", timing=self._timing,
                    )
                )  # fmt: skip
            else:
                self._follow_pods(selector.namespace or self._own, selector.pods or "")
            while True:
                await self._event.wait()
                self._event.clear()
                self._update()
        finally:
            tasks = [task for task in (pool, self._task) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _follow_pods(self, namespace: str, labels: str) -> None:
        if labels == self._labels:
            return
        self._labels = labels
        self._follow(
            Reflector(
                self._access, PODS, namespace, self._event.set, labels=labels, timing=self._timing
            )
        )

    def _follow(self, reflector: Reflector) -> None:
        if self._task is not None:
            self._task.cancel()
        self._pods = reflector
        self._task = asyncio.create_task(reflector.run(), name=self.selector.what)

    def _update(self) -> None:
        found = self._find()
        if found is None:
            return
        # A pod with two addresses has one slice per family; the first family counts.
        unique = {(each.uid or each.host, each.port): each for each in reversed(list(found))}
        endpoints = tuple(sorted(unique.values(), key=lambda each: (each.pod, each.port)))
        if endpoints != self.endpoints:
            self.endpoints = endpoints
            self._changed()

    def _find(self) -> Iterator[Endpoint] | None:
        """The endpoints now; None while nothing complete is known."""
        self._problems = []
        if self._pool is None:
            if self._pods is None or not self._pods.is_synced:
                return None
            if self.selector.service:
                return self._of_slices(self._pods.objects)
            return _of_pods(self._pods.objects, (int(self.selector.port or 0),))
        if not self._pool.is_synced:
            return None
        pool: InferencePool | None = next(iter(self._pool.objects.values()), None)
        if pool is None:
            self._problems = [f"{self.selector.what} does not exist, so it has no endpoints"]
            return iter(())
        labels = ",".join(f"{k}={v}" for k, v in sorted(pool.spec.selector.match_labels.items()))
        if not labels:
            # A selector without labels would select every pod of the namespace.
            self._problems = [f"{self.selector.what} has no labels in spec.selector.matchLabels"]
            return iter(())
        narrowed = f"{labels},{self.selector.pods}" if self.selector.pods else labels
        self._follow_pods(self._pool.namespace, narrowed)
        if self._pods is None or not self._pods.is_synced:
            return None
        ports = tuple(port.number for port in pool.spec.target_ports)
        if isinstance(self.selector.port, int):
            ports = (self.selector.port,)
        return _of_pods(self._pods.objects, ports)

    def _of_slices(self, slices: Mapping[str, EndpointSlice]) -> Iterator[Endpoint]:
        usable = [each for each in slices.values() if each.address_type in _FAMILIES]
        for each in sorted(usable, key=lambda found: (found.address_type, found.metadata.name)):
            port = self._port(each)
            for endpoint in each.endpoints or ():
                # The API reads an absent `ready` as true.
                state = endpoint.conditions
                if (
                    port is None
                    or state.ready is False
                    or state.terminating
                    or not (endpoint.addresses)
                ):
                    continue
                target = endpoint.target_ref
                host = endpoint.addresses[0]
                yield Endpoint(
                    target.name if target else host, target.uid if target else "", host, port
                )

    def _port(self, found: EndpointSlice) -> int | None:
        wanted = self.selector.port
        if isinstance(wanted, int):
            return wanted
        ports = [each for each in found.ports or () if each.port is not None]
        named = [each.port for each in ports if each.name == (wanted or _USUAL_PORT)]
        if named:
            return named[0]
        if wanted is None and len(ports) == 1:
            return ports[0].port
        names = ", ".join(repr(each.name) for each in ports) or "none"
        self._problems.append(
            f"{self.selector.what}: port: got the ports {names}, expected "
            f"{shown(wanted or _USUAL_PORT)} among them; name one with port"
        )
        return None


def _of_pods(pods: Mapping[str, Pod], ports: tuple[int, ...]) -> Iterator[Endpoint]:
    for pod in pods.values():
        if pod.is_ready:
            for number, port in enumerate(ports):
                yield Endpoint(
                    pod.metadata.name, pod.metadata.uid, pod.status.pod_ip or "", port, number
                )


class EndpointFollowers:
    """The followers of several selectors, which come and go.

    Args:
        environment: Variables of the process.
        own: Namespace of this pod.
        changed: Called after each change of the endpoints of a selector.
        timing: Deadlines and pauses.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        own: str,
        changed: Callable[[], object],
        timing: Timing | None = None,
    ) -> None:
        self._access = Access(environment)
        self._own = own
        self._changed = changed
        self._timing = timing
        self._running: dict[Any, tuple[EndpointFollower, asyncio.Task[None]]] = {}

    def follow(self, selectors: tuple[EndpointSelector, ...]) -> None:
        """Follow exactly these selectors. Must run in an event loop."""
        for gone in [each for each in self._running if each not in selectors]:
            self._running.pop(gone)[1].cancel()
        for selector in selectors:
            if selector not in self._running:
                follower = EndpointFollower(
                    selector, self._access, self._own, self._changed, self._timing
                )
                task = asyncio.create_task(follower.run(), name=selector.what)
                self._running[selector] = follower, task

    @property
    def endpoints(self) -> dict[Any, tuple[Endpoint, ...]]:
        """The endpoints of each selector."""
        return {each: follower.endpoints for each, (follower, _) in self._running.items()}

    @property
    def problems(self) -> tuple[str, ...]:
        """One text per object that cannot be used."""
        return tuple(text for each, _ in self._running.values() for text in each.problems)

    @property
    def error(self) -> str | None:
        """Why the API server cannot be asked now; None while it answers."""
        errors = [each.error for each, _ in self._running.values() if each.error]
        return "; ".join(errors) or None

    @property
    def answered_unix_s(self) -> float | None:
        """Up to when all endpoints are known to be fresh; None while one selector has no answer."""
        times = [each.answered_unix_s for each, _ in self._running.values()]
        known = [time for time in times if time is not None]
        return min(known) if known and len(known) == len(times) else None

    async def close(self) -> None:
        """End all followers."""
        tasks = [task for _, task in self._running.values()]
        self._running.clear()
        for task in tasks:
            task.cancel()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await self._access.forget()
