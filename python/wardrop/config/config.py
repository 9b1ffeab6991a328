"""The whole configuration, and the part of it that the native gateway reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from wardrop.config.control import Control, IndexFile, Log, Records, Shadows
from wardrop.config.dynamo import Dynamo
from wardrop.config.fleet import Fleet
from wardrop.config.http import Http, Limits, Routes, Upstream
from wardrop.config.peers import Peers
from wardrop.config.routing import SWITCHES, Feed, Predicted, Prompt, Routing
from wardrop.config.tracing import Tracing


@dataclass(frozen=True)
class Config:
    """All stages. A configuration is immutable: a change is a new configuration."""

    http: Http = field(default_factory=Http)
    limits: Limits = field(default_factory=Limits)
    routes: Routes = field(default_factory=Routes)
    upstream: Upstream = field(default_factory=Upstream)
    routing: Routing = field(default_factory=Routing)
    predicted: Predicted = field(default_factory=Predicted)
    prompt: Prompt = field(default_factory=Prompt)
    feed: Feed = field(default_factory=Feed)
    dynamo: Dynamo = field(default_factory=Dynamo)
    fleet: Fleet = field(default_factory=Fleet)
    control: Control = field(default_factory=Control)
    shadows: Shadows = field(default_factory=Shadows)
    records: Records = field(default_factory=Records)
    tracing: Tracing = field(default_factory=Tracing)
    peers: Peers = field(default_factory=Peers)
    index: IndexFile = field(default_factory=IndexFile)
    log: Log = field(default_factory=Log)

    def gateway_json(
        self,
        upstreams: list[str],
        timing: Mapping[str, list[tuple[float, float, float]]] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> str:
        """The configuration of `wardrop._core.Gateway`, as JSON.

        Args:
            upstreams: Addresses of the frontends, `http://HOST:PORT` each.
            timing: Points of a timing table, from which the latency curves start.
            environment: Variables of OpenTelemetry, where the stage `tracing` is silent.
        """
        routing = asdict(self.routing)
        routing["policy"] = {"name": routing["policy"], **routing.pop("parameters")}
        queue = {
            name: bool(value) if name in SWITCHES else int(value) if value == int(value) else value
            for name, value in routing.pop("queue_parameters").items()
        }
        routing["queue"] = queue if routing["queue"] else None
        routing["predicted"] = asdict(self.predicted)
        routing["receipts"] = self.control.receipts if self.control.admin_port >= 0 else 0
        routing["observe"] = self.dynamo.observe
        routing["bound_window_s"] = self.control.bound_window_s
        routing["timing"] = dict(timing or {})
        return json.dumps(
            {
                "listen": f"{self.http.host}:{self.http.port}",
                "upstreams": upstreams,
                "worker_threads": self.http.worker_threads,
                "router_id": self.http.router_id,
                "limits": asdict(self.limits),
                "routes": asdict(self.routes),
                "upstream": asdict(self.upstream) | {"ca_file": self.upstream.ca_file or None},
                "routing": routing,
                "prompt": asdict(self.prompt),
                "feed": asdict(self.feed),
                "shadows": self.shadows.gateway(),
                "records": self.records.native(),
                "tracing": self.tracing.native(environment),
                "peers": self.peers.native(),
                "log": "warn" if self.log.level == "warning" else self.log.level,
            }
        )
