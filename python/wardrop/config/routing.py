"""Settings of the routing service: policy, queue, predicted caches, prompts and event feeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from wardrop.config.fields import ConfigError, require_positive, require_within, setting

PredictedUse = Literal["off", "alone", "beside"]

SWITCHES = ("fair", "share_passes")
"""Parameters of the queue that are on or off; every other parameter is a number."""

_MAX_TENANTS = 1024
_MAX_TENANT_CHARACTERS = 128


@dataclass(frozen=True)
class Routing:
    """The choice of a worker."""

    policy: str = setting("toll", "name of the policy; dynamo is Dynamo's own cost", "policy")
    parameters: dict[str, float] = setting(  # noqa: RUF009  (a field, as the others)
        {}, "parameters of the policy, name=number,…", "policy-parameters"
    )
    queue: bool = setting(True, "let requests wait in the router for room at a worker", "queue")
    queue_parameters: dict[str, float] = setting(  # noqa: RUF009  (a field, as the others)
        {}, "parameters of the queue, name=number,… (kappa, backlog_s, …)", "queue-parameters"
    )
    price_guard: bool = setting(
        True,
        "fall back to a static rule while the predictions of the price do not fit the fleet",
        "price-guard",
    )
    queue_hints: bool = setting(False, "honour the priority and deadline headers of clients")
    tenant_weights: dict[str, float] = setting(  # noqa: RUF009  (a field, as the others)
        {}, "weights in a fair queue, tenant=number,…; other tenants have 1", "tenant-weights"
    )
    handoff_s_per_token: float = setting(
        0.0, "split fleet: seconds to move the KV of one prompt token to a decode worker"
    )
    seed: int = setting(0, "seed of the tie breaker", "seed")
    booking_ttl_s: float = setting(
        900.0, "age at which the booking of a request without an end is released"
    )
    allow_client_pins: bool = setting(
        False, "forward worker pins of clients; otherwise refuse them (400)"
    )
    explain_headers: bool = setting(
        False, "add x-wardrop-worker and x-wardrop-overlap-blocks to answers"
    )

    def __post_init__(self) -> None:
        if not self.policy:
            raise ConfigError("routing.policy: got an empty name, expected one such as 'toll'")
        require_within("routing.seed", self.seed, 0, 2**64 - 1)
        require_within("routing.booking_ttl_s", self.booking_ttl_s, 1e-3, 1e9)
        require_within("routing.handoff_s_per_token", self.handoff_s_per_token, 0, 1)
        _require_tenant_weights(self.tenant_weights)
        if self.queue_parameters and not self.queue:
            raise ConfigError(
                f"routing.queue_parameters: got {', '.join(self.queue_parameters)} without a "
                "queue; leave out --no-queue, or the parameters"
            )
        for name in SWITCHES:
            if (value := self.queue_parameters.get(name, 0)) not in (0, 1):
                raise ConfigError(
                    f"routing.queue_parameters: {name}: got {value:g}, expected 0 (off) or 1 (on)"
                )
        if self.tenant_weights and not (self.queue and self.queue_parameters.get("fair")):
            raise ConfigError(
                "routing.tenant_weights: got weights, but only a fair queue uses them; "
                "add --queue-parameters fair=1, and leave out --no-queue"
            )


@dataclass(frozen=True)
class Predicted:
    """Predicted caches: blocks that a worker should hold because of the requests sent to it.

    The page on predicted caches explains the three modes.
    """

    used: PredictedUse = setting(  # noqa: RUF009  (a field, as the others)
        "off",
        "off; alone: a fleet without KV events; beside: until the KV events arrive",
        "predicted",
    )
    ttl_s: float = setting(120.0, "life of a predicted block after the end of its request")
    settle_s: float = setting(1.0, "beside: life of a predicted block after the first token")
    capacity_blocks: int = setting(
        1 << 16, "KV blocks of a worker that does not report its capacity"
    )
    max_records: int = setting(1_000_000, "predicted blocks in all; the oldest is dropped first")

    def __post_init__(self) -> None:
        require_within("predicted.ttl_s", self.ttl_s, 1e-3, 1e9)
        require_within("predicted.settle_s", self.settle_s, 0, 1e9)
        require_within("predicted.capacity_blocks", self.capacity_blocks, 1, 2**40)
        require_within("predicted.max_records", self.max_records, 1, 2**32)


@dataclass(frozen=True)
class Prompt:
    """Turning prompts into tokens."""

    handover: bool = setting(
        True, "pass token ids to the frontend where they are proven equal to Dynamo's"
    )
    inline_bytes: int = setting(16 << 10, "longer prompts are tokenised off the serving threads")
    segment_cache_bytes: int = setting(
        64 << 20, "token ids of prompt prefixes kept in memory, all models together; 0 for none"
    )
    refuse_bytes_per_token: int = setting(
        64, "a text with more bytes than this times the context gets 400; 0 refuses none"
    )
    tokenise_threads: int = setting(2, "threads for longer prompts; large ones leave one free")
    tokenise_timeout_ms: int = setting(
        5_000, "wait for the tokeniser; after it the request is routed by load"
    )

    def __post_init__(self) -> None:
        require_within("prompt.inline_bytes", self.inline_bytes, 0, 2**40)
        require_within("prompt.segment_cache_bytes", self.segment_cache_bytes, 0, 2**40)
        require_within("prompt.refuse_bytes_per_token", self.refuse_bytes_per_token, 0, 2**32)
        require_within("prompt.tokenise_threads", self.tokenise_threads, 1, 64)
        require_within("prompt.tokenise_timeout_ms", self.tokenise_timeout_ms, 1, 2**31)


@dataclass(frozen=True)
class Feed:
    """Reading of event feeds, and the silence after which a worker counts as failed."""

    frame_bytes: int = setting(8 << 20, "largest frame that is read")
    silence_ms: int = setting(2_000, "silence after which a worker is not chosen")
    quarantine_ms: int = setting(5_000, "time until a failed worker is tried again")
    max_feeds: int = setting(16_384, "open feeds")
    deadline_ms: int = setting(3_000, "silence after which a feed is reconnected")
    distrust_ms: int = setting(
        30_000, "time after which suspect blocks are forgotten when no dump replaces them"
    )
    replay_timeout_ms: int = setting(
        2_000, "engines without Dynamo: longest wait for a replay of events that are missing"
    )
    tail_check_ms: int = setting(
        2_000, "engines without Dynamo: silence after which a replay looks for lost events"
    )

    def __post_init__(self) -> None:
        require_positive("feed", self)


def _require_tenant_weights(weights: Mapping[str, float]) -> None:
    if len(weights) > _MAX_TENANTS:
        raise ConfigError(
            f"routing.tenant_weights: got {len(weights)} tenants, expected at most {_MAX_TENANTS}"
        )
    for tenant, weight in weights.items():
        if not tenant or len(tenant) > _MAX_TENANT_CHARACTERS:
            raise ConfigError(
                f"routing.tenant_weights: got the tenant {tenant[:40]!r}, expected a name of 1 to "
                f"{_MAX_TENANT_CHARACTERS} characters, as in the header x-tenant-id"
            )
        require_within(f"routing.tenant_weights: {tenant}", weight, 1e-3, 1e3)
