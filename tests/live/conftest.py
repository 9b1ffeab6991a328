"""Live tests run a real Dynamo with mock workers, in a network namespace that has only `lo`.

The session moves itself into such a namespace before the first fleet starts. Where the kernel
refuses, it goes on and says what Dynamo exposes. To be inside from the start (needed for users
other than root when the process has threads): `python -m wardrop.dynamo.namespace -- python -m
pytest tests/live`.
"""

from __future__ import annotations

import sys
import warnings

import pytest

from wardrop.dynamo import namespace
from wardrop.dynamo.install import DynamoMissingError, dynamo_version


def pytest_report_header() -> str:
    return f"live: private network {namespace.is_private()}"


@pytest.fixture(scope="session")
def private_network() -> None:
    """Dynamo is installed, and this process sees only `lo` (or has said loudly why it does not)."""
    try:
        dynamo_version(sys.executable)
    except DynamoMissingError as error:
        pytest.skip(f"NO LIVE TEST RUNS: {error}")
    try:
        namespace.enter()
    except namespace.NamespaceRefusedError as error:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn(str(error), stacklevel=1)
