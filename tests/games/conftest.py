"""Where the tests find the recorded traces. A test that needs them is skipped without them."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def shared() -> Path:
    root = Path(os.environ.get("WARDROP_SHARED", REPO.parent / "shared"))
    if not (root / "traces").is_dir():
        pytest.skip(f"no recorded traces in {root}/traces; set WARDROP_SHARED")
    return root
