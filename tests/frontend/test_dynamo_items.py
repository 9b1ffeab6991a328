"""The comparison of the items of Dynamo that the native frontend uses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "dynamo_items"
FIELDS = "pub struct LoadThresholdConfig {\n    pub a: u32,\n}\n"


def crates(folder: Path, version: str, source: str) -> None:
    """The three crates, with one file of source in the first."""
    for crate in ("dynamo-llm", "dynamo-runtime", "dynamo-kv-router"):
        src = folder / f"{crate}-{version}" / "src"
        src.mkdir(parents=True)
        (src / "lib.rs").write_text(source if crate == "dynamo-llm" else "")


def compare(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "1.6.1", "1.7.0", "--sources", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("new", "code", "said"),
    [
        (f"/// Other words.\n{FIELDS}", 0, "no difference"),
        (FIELDS.replace("u32", "u64"), 1, "changed  LoadThresholdConfig"),
        ("", 1, "missing  LoadThresholdConfig"),
    ],
)
def test_change_of_a_used_item_is_reported(tmp_path: Path, new: str, code: int, said: str):
    crates(tmp_path, "1.6.1", FIELDS)
    crates(tmp_path, "1.7.0", new)
    compared = compare(tmp_path)
    assert compared.returncode == code, compared
    assert said in compared.stdout


def test_missing_crate_is_named(tmp_path: Path):
    crates(tmp_path, "1.6.1", FIELDS)
    compared = compare(tmp_path)
    assert compared.returncode == 2
    assert "dynamo-llm 1.7.0" in compared.stderr
