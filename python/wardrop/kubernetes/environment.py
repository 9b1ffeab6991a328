"""What a process knows of its cluster without asking it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from wardrop.config import ConfigError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
POD_INFO = Path("/etc/podinfo")
_DEFAULT_NAMESPACE = "default"


def require_package() -> None:
    """Refuse a setting that needs a cluster where the package for it is missing.

    Raises:
        ConfigError: The extra `kubernetes` is not installed.
    """
    if importlib.util.find_spec("kubernetes_asyncio") is None:
        raise ConfigError(
            "discovery through Kubernetes needs the package kubernetes_asyncio; "
            "pip install 'wardrop[kubernetes]'"
        )


def own_namespace(environment: Mapping[str, str]) -> str:
    """The namespace of this pod.

    Strongest first: the files that Dynamo reads below `/etc/podinfo`, `POD_NAMESPACE`, the service
    account. Without any of them it is `default`.
    """
    for text in (
        _text(POD_INFO / "pod_namespace"),
        environment.get("POD_NAMESPACE", "").strip(),
        _text(SERVICE_ACCOUNT / "namespace"),
    ):
        if text:
            return text
    return _DEFAULT_NAMESPACE


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:4096].strip()
    except (OSError, UnicodeDecodeError):
        return ""
