"""The lock file of the native frontend follows the crates that both workspaces share."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SHARED = ("core", "engines", "service", "sim")


@pytest.mark.parametrize("crate", SHARED)
def test_lock_file_has_every_dependency_of_a_shared_crate(crate: str):
    lock = tomllib.loads((ROOT / "frontend" / "Cargo.lock").read_text())
    manifest = tomllib.loads((ROOT / "rust" / crate / "Cargo.toml").read_text())
    (package,) = [p for p in lock["package"] if p["name"] == f"wardrop-{crate}"]
    locked = {each.partition(" ")[0] for each in package["dependencies"]}
    required = {
        name for name, options in manifest["dependencies"].items() if "optional" not in str(options)
    }
    assert required <= locked, "run `cargo update --workspace` in frontend/ and commit Cargo.lock"
