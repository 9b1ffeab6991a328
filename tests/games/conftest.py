"""Where the games' tests find the shared traces, and how they skip when those are missing."""

import os
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture
def shared() -> Path:
    root = Path(os.environ.get("WARDROP_SHARED", REPO.parent / "shared"))
    if not (root / "traces").is_dir():
        pytest.skip(f"SHARED TRACES MISSING: no {root}/traces; set WARDROP_SHARED to run this test")
    return root
