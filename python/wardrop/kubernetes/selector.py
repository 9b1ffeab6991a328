"""Which pods of a cluster serve, and where each publishes its KV events.

This module asks no cluster, so a door can read its file without an HTTP client. `endpoints` follows
what a selector selects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated

import msgspec

from wardrop.decoding import shown
from wardrop.errors import InputError

MAX_RANKS = 1024
_MAX_PORTS = 8
"""Ports of an InferencePool."""
_LAST_PORT = 65_535
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")

Port = Annotated[int, msgspec.Meta(ge=1, le=_LAST_PORT)]


@dataclass(frozen=True)
class Endpoint:
    """One HTTP server in a pod.

    Attributes:
        pod: Name of the pod.
        uid: Uid of the pod. A later pod with the same address has another one.
        host: IP address.
        port: Port of the server.
        number: Position of the port among those of the pod, from 0.
    """

    pod: str
    uid: str
    host: str
    port: int
    number: int = 0

    @property
    def authority(self) -> str:
        """`HOST:PORT`, with brackets around an IPv6 address."""
        return self._at(self.port)

    def socket(self, first_port: int | None, ranks: int) -> str | None:
        """`tcp://HOST:PORT` of rank 0 of this server; None where there is no first port.

        Args:
            first_port: Port of rank 0 of the pod's first server.
            ranks: Ranks of each server.
        """
        if first_port is None:
            return None
        return f"tcp://{self._at(first_port + self.number * ranks)}"

    def _at(self, port: int) -> str:
        return f"[{self.host}]:{port}" if ":" in self.host else f"{self.host}:{port}"


class EndpointSelector(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which pods serve, and on which ports.

    Attributes:
        inference_pool: `[NAMESPACE/]NAME` of an InferencePool; its selector and ports count.
        service: `[NAMESPACE/]NAME` of a service; its EndpointSlices count.
        pods: Labels of pods, as `kubectl -l` takes them; alone, or to narrow an InferencePool.
        namespace: Namespace where no name has one; by default that of this pod.
        port: Number of the HTTP port, or its name in the service. By default the ports of the
            InferencePool, or the only port of the service or that named `http`.
        events_port: Port of the KV events of rank 0. Without one, caches are predicted.
        replay_port: Port of the replay socket of rank 0.
        ranks: Data-parallel ranks of each server.
    """

    inference_pool: str | None = None
    service: str | None = None
    pods: str | None = None
    namespace: str | None = None
    port: Port | str | None = None
    events_port: Port | None = None
    replay_port: Port | None = None
    ranks: Annotated[int, msgspec.Meta(ge=1, le=MAX_RANKS)] = 1

    def check(self, place: str) -> None:
        """Refuse a selector that selects nothing, or two things.

        Raises:
            InputError: The text names the key.
        """
        if self.service and (self.inference_pool or self.pods):
            raise InputError(f"{place}: got a service and other keys that select; give one of them")
        if not (self.service or self.inference_pool or self.pods):
            raise InputError(f"{place}: expected one of inference_pool, service, pods")
        for key in ("inference_pool", "service", "namespace"):
            text: str | None = getattr(self, key)
            parts: list[str] = [] if text is None else text.split("/")
            if len(parts) > (1 if key == "namespace" else 2) or any(
                not _NAME.fullmatch(part) for part in parts
            ):
                raise InputError(f"{place}: {key}: got {shown(text)}, expected [NAMESPACE/]NAME")
        if self.pods and not self.inference_pool and not isinstance(self.port, int):
            raise InputError(f"{place}: port: got {shown(self.port)}, expected a number")
        if self.inference_pool and isinstance(self.port, str):
            raise InputError(f"{place}: port: got {shown(self.port)}, expected a number")
        if self.replay_port and not self.events_port:
            raise InputError(f"{place}: replay_port: got a port without events_port; add one")
        servers = _MAX_PORTS if self.inference_pool else 1
        for key in ("events_port", "replay_port"):
            first: int | None = getattr(self, key)
            last = (first or 0) + servers * self.ranks - 1
            if last > _LAST_PORT:
                raise InputError(
                    f"{place}: {key}: got {first} with {self.ranks} ranks of {servers} servers in "
                    f"a pod, but the port of the last rank would be {last}"
                )

    @property
    def what(self) -> str:
        """What is selected, for logs."""
        if self.service:
            return f"service {self.service}"
        if self.inference_pool:
            return f"InferencePool {self.inference_pool}"
        return f"pods {self.pods}"

    def located(self, name: str, own: str) -> tuple[str, str]:
        """Namespace and name of a `[NAMESPACE/]NAME`."""
        namespace, _, plain = name.rpartition("/")
        return namespace or self.namespace or own, plain
