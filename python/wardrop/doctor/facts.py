"""Answers of a router that the checks read, typed. Fields that no check reads are left out."""

from __future__ import annotations

from typing import Any

import msgspec

from wardrop.service.wiring import Wiring


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
    """One frontend behind the router."""

    authority: str
    up: bool
    connect_failures: int


class Limits(msgspec.Struct):
    """Limits in force."""

    connections: int
    concurrent_requests: int


class Resources(msgspec.Struct):
    """Resources of the router's process."""

    descriptors: int | None


class Status(msgspec.Struct):
    """`GET /v1/status`."""

    address: str | None
    draining: bool
    ready: bool
    limits: Limits
    resources: Resources
    upstreams: list[Upstream]
    models: list[Model]
    feeds: list[Feed]


class Part(msgspec.Struct):
    """One part of the control plane."""

    up: bool
    failures: int
    error: str


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


def status_of(answer: Any) -> Status:
    """The typed status."""
    return msgspec.convert(answer, Status)


def health_of(answer: Any) -> Health:
    """The typed health."""
    return msgspec.convert(answer, Health)


def wiring_of(answer: Any) -> Wiring:
    """The typed wiring."""
    return msgspec.convert(answer, Wiring)
