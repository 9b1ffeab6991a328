"""Settings of the HTTP gateway: its listener, its limits, and its connections to frontends."""

from __future__ import annotations

from dataclasses import dataclass

from wardrop.config.fields import require_positive, require_within, setting


@dataclass(frozen=True)
class Http:
    """The listener for clients."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 serves other machines")
    port: int = setting(8000, "port to listen on; 0 takes a free one")
    worker_threads: int = setting(2, "threads that serve HTTP")
    router_id: str = setting("wardrop-0", "label router_id of all metrics", "router-id")

    def __post_init__(self) -> None:
        require_within("http.port", self.port, 0, 65535)
        require_within("http.worker_threads", self.worker_threads, 1, 256)


@dataclass(frozen=True)
class Limits:
    """Limits for a client, each with the HTTP status of its refusal."""

    body_bytes: int = setting(64 << 20, "largest request body (413 above)")
    header_bytes: int = setting(64 << 10, "all header names and values together (431 above)")
    concurrent_requests: int = setting(4096, "requests in flight (429 above)")
    connections: int = setting(8192, "open client connections")
    read_timeout_ms: int = setting(30_000, "time to send the whole body (408 after)")

    def __post_init__(self) -> None:
        require_positive("limits", self)


@dataclass(frozen=True)
class Upstream:
    """Connections to the frontends."""

    connect_timeout_ms: int = setting(2_000, "time to connect before the next frontend is tried")
    first_byte_timeout_ms: int = setting(600_000, "time to the first byte (504 after)")
    idle_timeout_ms: int = setting(120_000, "longest silence inside an answer")
    idle_connections: int = setting(512, "idle connections kept per frontend and thread")
    idle_connection_ttl_ms: int = setting(30_000, "age up to which an idle connection is reused")
    retry_after_ms: int = setting(1_000, "time for which a frontend that refused is tried last")

    def __post_init__(self) -> None:
        require_positive("upstream", self)
