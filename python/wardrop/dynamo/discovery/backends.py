"""The discovery backend that the configuration and Dynamo's own environment ask for."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from wardrop.config import ConfigError, Dynamo
from wardrop.dynamo.discovery.etcd_source import EtcdSource
from wardrop.dynamo.discovery.file_source import FileSource
from wardrop.dynamo.discovery.file_store import default_root
from wardrop.dynamo.discovery.frontend_source import FrontendSource
from wardrop.dynamo.discovery.kubernetes_source import KubernetesSource
from wardrop.dynamo.discovery.scope import Scope
from wardrop.dynamo.discovery.source import Source
from wardrop.kubernetes.environment import require_package

log = logging.getLogger("wardrop.control")

_FRONTEND_POLL_INTERVAL_S = 1.0
"""Shortest time between two questions to a frontend, which answers clients too."""


def choose_source(dynamo: Dynamo, environment: Mapping[str, str], scope: Scope) -> Source:
    """The discovery backend for a configuration.

    Args:
        dynamo: Settings of the Dynamo behind the router.
        environment: Variables of the process. `DYN_DISCOVERY_BACKEND`, `DYN_FILE_KV`,
            `ETCD_ENDPOINTS`, `TMPDIR`, `DYN_KUBE_DISCOVERY_MODE` and `POD_NAMESPACE` matter, as
            they do for Dynamo.
        scope: Namespaces that the frontends see.

    Raises:
        ConfigError: `DYN_DISCOVERY_BACKEND` names a backend that the router cannot read, or an
            event endpoint has another form than expected.
    """
    interval_s = dynamo.poll_interval_ms / 1000
    kind = _kind(dynamo, environment)
    if kind == "file":
        root = Path(dynamo.store) if dynamo.store else default_root(environment)
        return FileSource(root, interval_s, scope)
    if kind == "etcd":
        given = environment.get("ETCD_ENDPOINTS", "http://localhost:2379").split(",")
        return EtcdSource(dynamo.etcd_endpoints or given, interval_s, scope)
    if kind == "kubernetes":
        require_package()
        return KubernetesSource(dynamo.kubernetes_namespace, interval_s, environment, scope)
    log.warning(
        "discovery asks the frontends, which report no event channels%s and no capacities",
        "" if dynamo.event_endpoints else " (routing is by load only)",
    )
    try:
        return FrontendSource(
            dynamo.upstreams,
            dynamo.block_size,
            dynamo.event_endpoints,
            max(interval_s, _FRONTEND_POLL_INTERVAL_S),
            scope,
        )
    except ValueError as error:
        raise ConfigError(f"dynamo.event_endpoints: {error}") from error


def _kind(dynamo: Dynamo, environment: Mapping[str, str]) -> str:
    if dynamo.discovery != "auto":
        return dynamo.discovery
    backend = environment.get("DYN_DISCOVERY_BACKEND")
    if backend in ("file", "etcd", "kubernetes"):
        return backend
    if dynamo.store:
        return "file"
    if dynamo.etcd_endpoints:
        return "etcd"
    if dynamo.upstreams:
        return "frontend"
    if backend:
        raise ConfigError(
            f"got DYN_DISCOVERY_BACKEND={backend}, expected file, etcd or kubernetes; for another "
            "backend start the frontends yourself and give --upstream URL"
        )
    return "etcd"  # Dynamo's own default


def dynamo_environment(
    source: Source, environment: Mapping[str, str], scope: Scope | None = None
) -> dict[str, str]:
    """Environment of a Dynamo process that must see the fleet of a discovery backend.

    The system port is left out: two processes cannot share a port.

    Args:
        source: The discovery backend.
        environment: Variables of this process.
        scope: Namespaces that the process sees; None leaves Dynamo's own variables as they are.
    """
    changed = {name: value for name, value in environment.items() if name != "DYN_SYSTEM_PORT"}
    changed["DYN_SDK_DISABLE_ANSI_LOGGING"] = "1"
    if scope is not None and scope.exact is not None:
        changed["DYN_NAMESPACE"] = scope.exact
    if scope is not None and scope.prefix is not None:
        changed["DYN_NAMESPACE_PREFIX"] = scope.prefix
    if isinstance(source, FileSource):
        changed |= {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(source.root)}
    if isinstance(source, EtcdSource):
        changed |= {
            "DYN_DISCOVERY_BACKEND": "etcd",
            "ETCD_ENDPOINTS": ",".join(source.endpoints),
        }
    if isinstance(source, KubernetesSource):
        changed |= {"DYN_DISCOVERY_BACKEND": "kubernetes", "POD_NAMESPACE": source.namespace}
    return changed
