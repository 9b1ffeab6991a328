"""Fixtures of the native frontend's tests: a private network, and the binary."""

from __future__ import annotations

import pytest
from tests.frontend.native import require_binary
from tests.live.conftest import private_network

__all__ = ["private_network"]


@pytest.fixture(scope="session")
def binary() -> None:
    """The native frontend is built; otherwise the test is skipped with the reason."""
    require_binary()
