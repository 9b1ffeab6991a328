"""`python -m bench.adapt`: the traffic of a cell, its schedules, and the small mode."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bench.adapt.cells import SLOW_SPEED, SLOW_WORKERS, Cell, Phase, cells, small, stretch, workload
from bench.adapt.oracle import spliced
from bench.adapt.runs import THEN, Runs, play
from bench.adapt.settings import CONTROLLER, DEFAULT, STATIC, changes

from wardrop.replay import Policy
from wardrop.replay.controlled import ControlledRun

ROOT = Path(__file__).parents[2]


def test_a_stretch_of_twice_the_load_has_twice_the_arrivals():
    drawn = stretch("support", [Phase("support", 0.5), Phase("support", 1.0)], seed=0)
    first, second = np.histogram(drawn.arrival_ms, bins=[0, 40e3, 80e3])[0]
    assert second / first == pytest.approx(2, rel=0.1)


def test_slow_workers_become_slow_and_recover():
    cell = Cell("slow", tuple(Phase("crowds", 1, 5, slow) for slow in (False, True, False)), None)
    faults = [(fault.at_ms, fault.worker, fault.value) for fault in cell.fleet().faults]
    slow = [(5e3, worker, SLOW_SPEED) for worker in SLOW_WORKERS]
    assert faults == [*slow, *((10e3, worker, 1.0) for worker in SLOW_WORKERS)]


def started(setting: str) -> ControlledRun:
    """A run of a small cell under a setting, before its first request."""
    cell, policy = small()[0], Policy.parse(setting)
    fleet = cell.fleet()
    return ControlledRun(workload(cell, 0), fleet, policy.routers(fleet, 0), 0, {"acts": False})


@pytest.mark.parametrize("before", STATIC)
@pytest.mark.parametrize("after", STATIC)
def test_a_change_of_setting_leaves_nothing_of_the_one_before(before: str, after: str):
    if before == after:
        return
    run = started(before)
    run.door.change(changes(after), "hand", "the schedule")
    assert run.door.settings() == started(after).door.settings()


def test_a_schedule_changes_the_setting_at_the_start_of_a_phase():
    cell = small()[0]
    _, run = play(cell, THEN.join(["toll", DEFAULT]), 0)
    (record,) = (one for one in run.audit if one.by == "hand")
    assert record.at_s == cell.starts_s[1]
    assert "queue" in record.setting


def test_every_group_of_traffic_has_a_cell():
    assert {cell.group for cell in cells()} == {"ramp", "shift", "slow", "steady"}


def test_spliced_takes_the_best_static_run_of_each_phase(tmp_path: Path):
    runs = Runs(tmp_path / "adapt.json")
    cell = small()[0]
    for at, setting in enumerate(STATIC):
        first, second = (1.0, 9.0) if at == 0 else (5.0, 2.0)
        runs.found[cell.name, setting, 0] = {"segments": [[1, first], [3, 3 * second]]}
    assert math.exp(spliced(runs, cell, 1)) == pytest.approx((1 * 1.0 + 3 * 2.0) / 4)


def test_the_small_mode_prints_a_table_and_resumes(tmp_path: Path):
    path = tmp_path / "adapt.json"
    flags = ["--small", "--seeds", "1", "--cells", "ramp", "--results", str(path)]

    def bench(*more: str) -> str:
        run = subprocess.run(
            [sys.executable, "-m", "bench.adapt", *more, *flags],
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert run.returncode == 0, run.stderr
        return run.stdout

    shown = bench("run")
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert {row["arm"] for row in rows} >= {*STATIC, CONTROLLER}
    assert all(row["e2e"] > 0 for row in rows)
    assert "| ramp: small |" in shown
    written = path.stat().st_mtime_ns
    assert bench("run") == shown
    assert path.stat().st_mtime_ns == written
    picture = tmp_path / "adaptive.png"
    bench("draw", "--picture", str(picture))
    assert picture.stat().st_size > 10_000
