"""The fields of Kubernetes objects that the router reads.

Every other field is skipped. An object with a field of another type is refused as a whole, and the
reflector keeps what the object was before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import msgspec

from wardrop.decoding import decode_json
from wardrop.kubernetes.selector import Port

MAX_OBJECT_BYTES = 4 << 20
"""A larger object is not read. The API server itself refuses objects above 1.5 MiB by default."""

T = TypeVar("T")

Name = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


class OwnerReference(msgspec.Struct, frozen=True):
    """An object on which another one depends."""

    kind: str = ""
    uid: str = ""


class Metadata(msgspec.Struct, frozen=True, rename="camel"):
    """Identity of an object. `uid` differs between two objects of one name."""

    name: Name
    uid: str = ""
    deletion_timestamp: str | None = None
    owner_references: tuple[OwnerReference, ...] | None = None


class Condition(msgspec.Struct, frozen=True):
    """One statement of a pod's status."""

    type: str = ""
    status: str = ""


class ContainerStatus(msgspec.Struct, frozen=True):
    """State of one container of a pod."""

    name: str
    ready: bool = False


class PodStatus(msgspec.Struct, frozen=True, rename="camel"):
    """Address and state of a pod."""

    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    conditions: tuple[Condition, ...] | None = None
    container_statuses: tuple[ContainerStatus, ...] | None = None


class Pod(msgspec.Struct, frozen=True):
    """A pod."""

    metadata: Metadata
    status: PodStatus = PodStatus()

    @property
    def is_ready(self) -> bool:
        """Whether the pod takes requests: ready, with an address, and not being deleted."""
        ready = any(
            condition.type == "Ready" and condition.status == "True"
            for condition in self.status.conditions or ()
        )
        return ready and bool(self.status.pod_ip) and self.metadata.deletion_timestamp is None


class EndpointConditions(msgspec.Struct, frozen=True):
    """State of one endpoint. The API reads an absent `ready` as true."""

    ready: bool | None = None
    terminating: bool | None = None


class TargetReference(msgspec.Struct, frozen=True):
    """The pod behind an endpoint."""

    name: str = ""
    uid: str = ""


class SliceEndpoint(msgspec.Struct, frozen=True, rename="camel"):
    """One endpoint of a slice."""

    addresses: tuple[str, ...] = ()
    conditions: EndpointConditions = EndpointConditions()
    target_ref: TargetReference | None = None


class SlicePort(msgspec.Struct, frozen=True):
    """A port that every endpoint of a slice has."""

    name: str | None = None
    port: Port | None = None


class EndpointSlice(msgspec.Struct, frozen=True, rename="camel"):
    """A part of the endpoints of a service."""

    metadata: Metadata
    address_type: str = "IPv4"
    endpoints: tuple[SliceEndpoint, ...] | None = None
    ports: tuple[SlicePort, ...] | None = None


class TargetPort(msgspec.Struct, frozen=True):
    """A port of the pods of an InferencePool."""

    number: Port


class LabelSelector(msgspec.Struct, frozen=True, rename="camel"):
    """Labels that a pod must have."""

    match_labels: dict[str, str] = {}


class InferencePoolSpec(msgspec.Struct, frozen=True, rename="camel"):
    """Which pods serve a pool, and on which ports."""

    selector: LabelSelector
    target_ports: Annotated[tuple[TargetPort, ...], msgspec.Meta(min_length=1, max_length=8)]


class InferencePool(msgspec.Struct, frozen=True):
    """An InferencePool of `inference.networking.k8s.io/v1`."""

    metadata: Metadata
    spec: InferencePoolSpec


@dataclass(frozen=True)
class Resource:
    """A kind of objects on the API server.

    Attributes:
        group: API group; empty for the core group.
        version: Version of the group.
        plural: Name of the kind in paths.
        decode: Makes an object with a field `metadata` from its JSON text and a place for errors.
            It raises ValueError for an object that cannot be used.
    """

    group: str
    version: str
    plural: str
    decode: Callable[[bytes, str], Any]

    @property
    def name(self) -> str:
        """The kind as `kubectl` names it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str) -> str:
        """Path of all objects of a namespace."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        return f"{root}/namespaces/{quote(namespace, safe='')}/{self.plural}"


def decoder_of(kind: type[T]) -> Callable[[bytes, str], T]:
    """A function that decodes objects of a type, with the limit of an object.

    It raises DecodeError when the text is too large, or a field is missing or has another type.
    """
    decoder = msgspec.json.Decoder(kind)

    def decode(text: bytes, place: str) -> T:
        return decode_json(decoder, text, place, MAX_OBJECT_BYTES)

    return decode


PODS = Resource("", "v1", "pods", decoder_of(Pod))
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", decoder_of(EndpointSlice))
INFERENCE_POOLS = Resource(
    "inference.networking.k8s.io", "v1", "inferencepools", decoder_of(InferencePool)
)
