"""Random faults on a real fleet under traffic: nothing is lost, wrong, silent, or left behind."""

from __future__ import annotations

import asyncio
import os

import pytest
from tests.chaos.run import Settings, run

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]


@pytest.mark.timeout(600)
def test_short_run_breaks_no_rule():
    settings = Settings(
        seed=int(os.environ.get("CHAOS_SEED", "1")),
        seconds=float(os.environ.get("CHAOS_SECONDS", "60")),
    )
    report = asyncio.run(run(settings))
    print("\n".join(report.lines()))
    if report.violations:
        print(f"---- router log\n{report.router_log[-8000:]}")
    assert report.violations == []
