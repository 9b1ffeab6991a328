"""The table of doors: every cell names a test that exists, or says why there is none."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "doors.md"
WANTED = {
    "aggregated workers",
    "split prefill and decode",
    "adapters (LoRA)",
    "cache namespaces (salt)",
    "data-parallel ranks",
    "streams",
    "late binding",
    "receipts",
    "price of anarchy",
}


DOORS = [
    "wardrop dynamo",
    "wardrop serve",
    "wardrop picker",
    "wardrop select",
    "wardrop frontend",
]


def cells() -> dict[str, dict[str, str]]:
    """Test or reason by door and ability."""
    found: dict[str, dict[str, str]] = {}
    door = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            door = line[3:]
        elif line.startswith("| ") and not line.startswith("| ability"):
            ability, cell = (part.strip() for part in line.strip("|").split("|"))
            assert ability not in found.setdefault(door, {}), f"{door} has {ability} twice"
            found[door][ability] = cell
    return found


CELLS = [
    pytest.param(cell, id=f"{door}-{ability}")
    for door, abilities in cells().items()
    for ability, cell in abilities.items()
]


@cache
def named_in(file: str) -> set[str]:
    text = (ROOT / "tests" / file).read_text()
    return set(re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("cell", CELLS)
def test_cell_names_a_test_or_a_reason(cell: str) -> None:
    named = re.findall(r"`(\S+\.py)::(\w+)`", cell)
    if not named:
        assert re.fullmatch(r"no: \w.{10,}", cell), cell
    for file, test in named:
        assert test in named_in(file), f"{file} has no {test}"


def test_every_door_has_every_ability() -> None:
    assert list(cells()) == DOORS
    for door, abilities in cells().items():
        assert abilities.keys() >= WANTED, door
