"""The script of the first tutorial prints on a real Dynamo what the tutorial's page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TUTORIALS = Path(__file__).resolve().parents[2] / "docs" / "tutorials"

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]


def test_the_script_prints_what_the_tutorial_says(tmp_path: Path):
    page = (TUTORIALS / "first-router.md").read_text()
    shown = re.search(r"\$ python docs/tutorials/live_router\.py\n(.*?)```", page, re.DOTALL)
    assert shown
    ran = subprocess.run(
        [sys.executable, TUTORIALS / "live_router.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == shown[1]
