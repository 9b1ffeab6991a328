"""Settings of the HTTP gateway: its listener, its limits, and its connections to frontends."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wardrop.config.fields import ConfigError, require_positive, require_within, setting

_HOST = re.compile(r"[A-Za-z0-9._:%\[\]-]+")


@dataclass(frozen=True)
class Http:
    """The listener for clients."""

    host: str = setting("127.0.0.1", "address to listen on; 0.0.0.0 serves other machines")
    port: int = setting(8000, "port to listen on; 0 takes a free one")
    worker_threads: int = setting(2, "threads that serve HTTP")
    router_id: str = setting("wardrop-0", "label router_id of all metrics", "router-id")

    def __post_init__(self) -> None:
        if not _HOST.fullmatch(self.host):
            raise ConfigError(
                f"http.host: got {self.host!r}, expected an address or a name of this machine"
            )
        require_within("http.port", self.port, 0, 65535)
        require_within("http.worker_threads", self.worker_threads, 1, 256)


@dataclass(frozen=True)
class Limits:
    """Limits for clients, each with the HTTP status of its refusal.

    At start the gateway lowers a limit that does not fit the descriptors, the memory or the
    threads of the process. It logs the value in force.
    """

    body_bytes: int = setting(64 << 20, "largest request body (413 above)")
    all_bodies_bytes: int = setting(512 << 20, "all request bodies in memory together (503 above)")
    header_bytes: int = setting(64 << 10, "all header names and values together (431 above)")
    concurrent_requests: int = setting(4096, "requests in flight (429 above)")
    connections: int = setting(8192, "open client connections; the longest idle closes above")
    read_timeout_ms: int = setting(30_000, "time to send a head, and to send a body (408 after)")
    write_timeout_ms: int = setting(30_000, "time without a byte read by a client that must read")
    idle_timeout_ms: int = setting(300_000, "time for which an unused connection stays open")

    def __post_init__(self) -> None:
        require_positive("limits", self)
        for name in ("read_timeout_ms", "write_timeout_ms", "idle_timeout_ms"):
            require_within(f"limits.{name}", getattr(self, name), 1, 86_400_000)


@dataclass(frozen=True)
class Routes:
    """Routes of the public port, beside the routes of the OpenAI and Anthropic APIs."""

    extra: tuple[str, ...] = setting(
        (), "further path to forward, such as /engine/stats; a final /* covers all paths below"
    )
    metrics: bool = setting(True, "serve /metrics on the public port")

    def __post_init__(self) -> None:
        for path in self.extra:
            if not path.startswith("/") or "*" in path.removesuffix("/*"):
                raise ConfigError(
                    f"routes.extra: got {path!r}, expected a path that starts with /, "
                    "with /* at its end for all paths below"
                )


@dataclass(frozen=True)
class Upstream:
    """Connections to the frontends."""

    connect_timeout_ms: int = setting(2_000, "time to connect before the next frontend is tried")
    first_byte_timeout_ms: int = setting(600_000, "time to the first byte (504 after)")
    idle_timeout_ms: int = setting(120_000, "longest silence inside an answer")
    idle_connections: int = setting(512, "idle connections kept per frontend and thread")
    all_idle_connections: int = setting(1024, "idle connections kept over all frontends")
    idle_connection_ttl_ms: int = setting(30_000, "age up to which an idle connection is reused")
    retry_after_ms: int = setting(1_000, "time for which a frontend that refused is tried last")
    ca_file: str = setting(
        "",
        "PEM file with the authorities of https:// servers; empty for those of the system",
        "upstream-ca",
    )
    probe_interval_ms: int = setting(
        500, "time between two probes of the frontends, where there are several; 0 probes none"
    )

    def __post_init__(self) -> None:
        require_positive("upstream", self, but=("probe_interval_ms", "ca_file"))
        require_within("upstream.probe_interval_ms", self.probe_interval_ms, 0, 60_000)
