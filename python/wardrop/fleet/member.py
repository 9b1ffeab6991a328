"""One server of a fleet of engines: its identity, and its addresses behind a name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from msgspec import structs

from wardrop.fleet.spec import WorkerSpec, address, authority, http_address

_ID_BITS = (1 << 53) - 1
"""Ids fit a JSON number that every reader keeps exact."""


@dataclass(frozen=True)
class Member:
    """One server.

    Attributes:
        instance: Id of the worker, the same after each restart of the router.
        url: Base address of its HTTP server.
        spec: What the user wrote, with the addresses of this server.
        incarnation: Uid of the pod in a cluster, where a later pod may get the same address.
        server_name: Name that the certificate must have, where it is not the host of the URL.
    """

    instance: int
    url: str
    spec: WorkerSpec
    incarnation: str = ""
    server_name: str | None = None

    def is_same_server(self, other: Member) -> bool:
        """Whether a probe of this member fits another: same pod and name of the certificate."""
        return (self.incarnation, self.server_name) == (other.incarnation, other.server_name)


def members_of(worker: WorkerSpec, addresses: tuple[str, ...]) -> list[Member]:
    """The servers that one entry stands for: one, or one for each address of its name.

    Args:
        worker: What the user wrote.
        addresses: Addresses of the name in its URL; used where `worker.dns` is set.
    """
    place = http_address(worker.url, "url")
    # The certificate of a server behind a name has the name, not the address.
    certificate_name = place.host if worker.dns and place.scheme == "https" else None
    members: list[Member] = []
    for host in addresses if worker.dns else (place.host,):
        url = f"{place.scheme}://{authority(host, place.port)}"
        moved = {
            name: _at(endpoint, place.host, host)
            for name in ("events", "replay")
            if (endpoint := getattr(worker, name)) is not None
        }
        own = structs.replace(worker, url=url, **moved)
        members.append(Member(stable_id(url), url, own, server_name=certificate_name))
    return members


def _at(endpoint: str, name: str, host: str) -> str:
    """The endpoint at one of the addresses of a name."""
    place = address(endpoint, "tcp", "endpoint")
    return f"tcp://{authority(host if place.host == name else place.host, place.port)}"


def stable_id(text: str) -> int:
    """A number for a text, above 0, that is the same in every process."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") & _ID_BITS) or 1
