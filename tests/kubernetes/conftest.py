"""A cluster for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.kubernetes.api_server import ApiServer


@pytest.fixture
def cluster() -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.close()


@pytest.fixture
def environment(cluster: ApiServer, tmp_path: Path) -> dict[str, str]:
    """Variables with which a process finds the cluster."""
    return {"KUBECONFIG": cluster.kubeconfig(tmp_path), "POD_NAMESPACE": cluster.namespace}
