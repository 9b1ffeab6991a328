"""The guides for contributors name files, targets and flags that exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
GUIDES = ("CONTRIBUTING.md", "SECURITY.md")


@pytest.mark.parametrize("guide", GUIDES)
def test_named_paths_exist(guide: str) -> None:
    text = (ROOT / guide).read_text()
    paths = re.findall(r"`((?:rust|python|tests|bench|docs|\.ci)/[\w./-]+)`", text)
    paths += [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_named_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    texts = [
        *((ROOT / guide).read_text() for guide in GUIDES),
        config,
        (ROOT / ".ci/run").read_text(),
    ]
    named = {
        name
        for text in texts
        for name in re.findall(r"(?:`|entry: |^|exec )make ([a-z-]+)", text, re.MULTILINE)
    }
    assert {"lint", "test", "deny"} <= named
    assert named - targets == set()


def test_flags_of_the_security_page_exist() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    command = [sys.executable, "-m", "wardrop", "dynamo", "--help"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    known = set(re.findall(r"--[a-z-]+", ran.stdout))
    named = set(re.findall(r"`(--[a-z-]+[a-z])(?:`| )", text))
    assert named
    assert named - known == set()
