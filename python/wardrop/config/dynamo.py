"""Settings of the Dynamo behind the router: frontends, discovery, start and stop."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from wardrop.config.fields import ConfigError, require_address, require_within, setting

FrontendMode = Literal["kv", "direct", "round-robin"]
Discovery = Literal["auto", "file", "etcd", "kubernetes", "frontend"]


@dataclass(frozen=True)
class Dynamo:
    """The Dynamo behind the router."""

    upstreams: tuple[str, ...] = setting(
        (), "frontends that run already; without any, frontends are started", "upstream"
    )
    frontends: int = setting(1, "dynamo.frontend processes to start", "frontends")
    frontend_mode: FrontendMode = setting(  # noqa: RUF009  (a field, as the others)
        "kv", "--router-mode of the frontends that are started", "frontend-mode"
    )
    observe: bool = setting(
        False,
        "place no request: the frontends choose every worker, and the router measures the choices",
        "observe",
    )
    discovery: Discovery = setting(  # noqa: RUF009  (a field, as the others)
        "auto",
        "auto: DYN_DISCOVERY_BACKEND, else what --store, --etcd-endpoints or --upstream imply",
        "discovery",
    )
    python: str = setting("", "Python interpreter with Dynamo; by default the router's own")
    store: str = setting("", "folder of the file store; by default DYN_FILE_KV", "store")
    etcd_endpoints: tuple[str, ...] = setting(
        (), "by default ETCD_ENDPOINTS, else http://localhost:2379", "etcd-endpoints"
    )
    kubernetes_namespace: str = setting(
        "", "namespace of the cluster, with --discovery kubernetes; by default that of this pod"
    )
    namespace: str = setting(
        "", "the only namespace whose workers are routed; by default DYN_NAMESPACE, else all"
    )
    namespace_prefix: str = setting(
        "", "start of the namespaces that are routed; by default DYN_NAMESPACE_PREFIX"
    )
    poll_interval_ms: int = setting(200, "shortest time between two polls of discovery")
    event_endpoints: tuple[str, ...] = setting(
        (), "TOPIC@tcp://HOST:PORT, with --discovery frontend", "event-endpoint"
    )
    block_size: int = setting(16, "tokens per block, with --discovery frontend", "block-size")
    bootstrap: bool = setting(True, "read the blocks of all workers at start", "bootstrap")
    resync_interval_s: float = setting(10.0, "shortest time between two resyncs of a pool")
    restart_limit: int = setting(
        10, "restarts of a frontend in ten minutes; one more ends a router that no frontend answers"
    )
    ready_timeout_s: float = setting(120.0, "time for the frontends to answer at start")
    drain_timeout_s: float = setting(
        30.0, "time for requests in flight to end at stop", "drain-timeout-s"
    )

    def __post_init__(self) -> None:
        for url in (*self.upstreams, *self.etcd_endpoints):
            require_address("dynamo", url)
        if self.python and not os.access(self.python, os.X_OK):
            raise ConfigError(
                f"dynamo.python: got {self.python!r}, which is no program; expected the path of a "
                "Python interpreter with Dynamo"
            )
        require_within("dynamo.frontends", self.frontends, 1, 256)
        require_within("dynamo.poll_interval_ms", self.poll_interval_ms, 10, 60_000)
        require_within("dynamo.block_size", self.block_size, 1, 65_536)
        require_within("dynamo.restart_limit", self.restart_limit, 0, 10_000)
        for name in ("resync_interval_s", "ready_timeout_s", "drain_timeout_s"):
            require_within(f"dynamo.{name}", getattr(self, name), 0, 86_400)
        if self.discovery == "frontend" and not self.upstreams:
            raise ConfigError(
                "dynamo.discovery: got 'frontend' without upstreams; add --upstream URL, or use "
                "'file', 'etcd' or 'kubernetes' with frontends that the router starts"
            )
        if self.event_endpoints and self.discovery not in ("auto", "frontend"):
            raise ConfigError(
                f"dynamo.event_endpoints: got endpoints with discovery {self.discovery!r}, which "
                "finds the endpoints itself; leave them out"
            )
