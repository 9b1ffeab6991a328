"""Answers of a router that the checks read, typed. Fields that no check reads are left out."""

from __future__ import annotations

from typing import Any

import msgspec

from wardrop.service.wiring import DoorName, Wiring


class Worker(msgspec.Struct):
    """One worker of `GET /v1/status`. Ages are seconds."""

    instance: int
    dp_rank: int
    available: bool
    fault: str | None
    feed_state: str
    trust_mode: str
    trust_score: float
    trust_found_share: float
    trust_feed_share: float
    needs_resync: bool
    event_gaps: int
    events_lost: int
    last_event_id: int | None
    event_age_s: float | None
    heartbeat_age_s: float | None
    audited_requests: int
    predicted_cached_tokens: int
    reported_cached_tokens: int
    cached_tokens_absolute_error: int

    @property
    def name(self) -> str:
        """Instance and rank."""
        return f"{self.instance}/{self.dp_rank}"


class Pool(msgspec.Struct):
    """The workers of one model in one role."""

    role: str
    workers: list[Worker]


class Handover(msgspec.Struct):
    """Comparison of token ids with the engine's own."""

    checks: int
    difference: str | None


class Model(msgspec.Struct):
    """One model."""

    name: str
    block_size: int
    context_length: int | None
    loras: list[str]
    has_tokeniser: bool
    has_template: bool
    handover_enabled: bool
    handover: Handover | None
    problems: list[str]
    pools: list[Pool]


class Feed(msgspec.Struct):
    """One subscription to the event plane."""

    topic: str
    model: str
    role: str
    endpoint: str
    instance: int | None
    connected: bool
    messages: int
    malformed: int
    lost: int
    age_s: float | None


class Upstream(msgspec.Struct):
    """One frontend or engine behind the router."""

    authority: str
    up: bool
    connect_failures: int


class Limits(msgspec.Struct):
    """Limits in force. A door that counts requests only has no limit of connections."""

    connections: int | None = None
    concurrent_requests: int | None = None


class Resources(msgspec.Struct):
    """Resources of the router's process."""

    descriptors: int | None


class Part(msgspec.Struct):
    """One part of the control plane."""

    up: bool
    failures: int
    error: str


class Status(msgspec.Struct):
    """`GET /v1/status`. A door without a figure leaves its field out.

    Attributes:
        models: Models with their workers.
        feeds: Subscriptions to KV events and to reports of engine steps.
        address: Public address of the door; None where the door does not name it.
        upstreams: Frontends or engines to which the door sends requests.
        limits: Limits in force.
        resources: Resources of the process.
        control: Parts of the control plane, where the door reports them here.
    """

    models: list[Model]
    feeds: list[Feed] = []
    address: str | None = None
    upstreams: list[Upstream] = []
    limits: Limits | None = None
    resources: Resources | None = None
    control: dict[str, Part] = {}


class Health(msgspec.Struct):
    """`GET /health`."""

    status: str
    routable_workers: int
    control: dict[str, Part] = {}


class Facts(msgspec.Struct):
    """Everything that the checks of facts read.

    Attributes:
        status: Workers, feeds, limits.
        wiring: Versions and switches of the router's process.
        health: Parts of the control plane; None when the public port does not answer.
        doctor_version: Version of this package.
        clock_skew_s: Clock of the router minus the clock of this machine, in seconds.
    """

    status: Status
    wiring: Wiring
    health: Health | None
    doctor_version: str
    clock_skew_s: float

    @property
    def door(self) -> DoorName:
        """Command that runs the router."""
        return self.wiring.door


def status_of(answer: Any) -> Status:
    """The typed status."""
    return msgspec.convert(answer, Status)


def health_of(answer: Any) -> Health:
    """The typed health."""
    return msgspec.convert(answer, Health)


def wiring_of(answer: Any) -> Wiring:
    """The typed wiring."""
    return msgspec.convert(answer, Wiring)
