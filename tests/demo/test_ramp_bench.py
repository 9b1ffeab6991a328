"""`make ramp`: the settings that tune Dynamo, the statistics of the table, and one short run."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from bench.ramp.__main__ import judged, tuned
from bench.ramp.cells import TUNING_SEED, Cell, cells
from bench.ramp.grid import DEFAULT, GRID
from bench.ramp.runs import WARDROP_FRONT, Runs, dynamo
from bench.ramp.table import pairs, ratio

from wardrop.dynamo.install import DynamoMissingError, dynamo_version

ROOT = Path(__file__).parents[2]
CELL = Cell("chat", "aggregated")


def a_row(name: str, seed: int, ttft_ms: float, late_ms: float = 1.0) -> dict[str, Any]:
    live = {"ttft_ms": ttft_ms, "ttft_p99_ms": 2 * ttft_ms, "late_ms": late_ms}
    return {"cell": CELL.name, "contender": name, "seed": seed, "live": live}


def some_runs(tmp_path: Path, rows: list[dict[str, Any]]) -> Runs:
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Runs(path, tmp_path / "unused.npz", report=lambda _text: None)


def test_the_default_of_dynamo_needs_no_file(tmp_path: Path):
    assert DEFAULT.flags(tmp_path) == ()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("setting", GRID[1:], ids=lambda one: one.name)
def test_a_setting_is_a_yaml_file_for_both_pools(setting, tmp_path: Path):
    flag, path = setting.flags(tmp_path)
    assert flag == "--router-policy-config"
    content = yaml.safe_load(Path(path).read_text())
    selection = content.get("worker_selection")
    assert (selection is not None) == bool(setting.cost or setting.two_tier)
    if selection is not None:
        assert {selection[role] for role in ("aggregated", "prefill", "decode")} == {"tuned"}
        assert selection["instances"][0].get("parameters", {}) == setting.cost
    queues = [one["queue_policy"] for one in content.get("policy_classes", [])]
    assert queues == ([setting.queue] if setting.queue else [])


def test_the_example_file_is_the_setting_with_four_times_the_prompt_load(tmp_path: Path):
    (scale_4,) = (one for one in GRID if one.name == "scale-4")
    written = yaml.safe_load(Path(scale_4.flags(tmp_path)[1]).read_text())
    assert yaml.safe_load((ROOT / "examples/dynamo-tuned.yaml").read_text()) == written


def test_the_tuned_setting_is_the_best_of_the_whole_grid(tmp_path: Path):
    rows = [a_row(dynamo(one).name, TUNING_SEED, 100.0 - i) for i, one in enumerate(GRID)]
    assert tuned(some_runs(tmp_path, rows[:-1]), CELL) is None
    runs = some_runs(tmp_path, rows)
    assert tuned(runs, CELL) is GRID[-1]
    names = [one.name for one in judged(runs, CELL, inside=False)]
    assert names == ["dynamo default", f"dynamo {GRID[-1].name}", "wardrop"]


def test_ratios_are_paired_by_seed(tmp_path: Path):
    rows = [a_row("wardrop", 0, 50.0), a_row("wardrop", 1, 60.0), a_row("dynamo default", 1, 120.0)]
    runs = some_runs(tmp_path, rows)
    assert pairs(runs, CELL, "wardrop", "dynamo default", 3, "ttft_ms") == [0.5]


def test_a_ratio_is_a_geometric_mean_with_the_interval_of_students_t():
    one = ratio([0.5, 0.8])
    assert math.isclose(one.mean, math.sqrt(0.4))
    # t(0.975, 1) = 12.706; the logarithms deviate by ln(0.8 / 0.5) / 2 from their mean.
    assert math.isclose(one.high, one.mean * math.exp(12.7062 * math.log(1.6) / 2), rel_tol=1e-4)
    assert one.worst == pytest.approx(0.8)
    assert math.isnan(ratio([0.7]).low)


def test_a_run_whose_driver_was_late_counts_only_until_it_is_repeated(tmp_path: Path):
    rows = [a_row("wardrop", 0, 900.0, late_ms=50.0), a_row("wardrop", 0, 70.0)]
    found = some_runs(tmp_path, rows).find(CELL, "wardrop", 0)
    assert found is not None
    assert found["live"]["ttft_ms"] == 70.0


def test_file_with_runs_of_another_length_is_refused(tmp_path: Path):
    rows = [a_row("wardrop", 0, 70.0) | {"seconds": 40.0}]
    with pytest.raises(ValueError, match="at 40 s, and 30 s are asked for"):
        some_runs(tmp_path, rows).run(CELL, WARDROP_FRONT, 0, 30.0)


def test_every_kind_of_traffic_runs_on_both_fleets():
    assert len({cell.name for cell in cells()}) == 6


@pytest.mark.live
@pytest.mark.heavy
@pytest.mark.timeout(600)
def test_real_dynamo_takes_every_setting_and_a_short_ramp_ends_with_a_table(tmp_path: Path):
    try:
        dynamo_version(sys.executable)
    except DynamoMissingError as error:
        pytest.skip(f"NO LIVE TEST RUNS: {error}")
    flags = ["--runs", str(tmp_path / "runs.jsonl"), "--cells", "agents/split", "--seeds", "1"]
    flags += ["--seconds", "4", "--tuning-seconds", "4", "--picture", str(tmp_path / "ramp.png")]
    run = subprocess.run(
        [sys.executable, "-m", "bench.ramp", *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    ran = [row for row in rows if "live" in row]
    assert {row["contender"] for row in ran} >= {*(dynamo(one).name for one in GRID), "wardrop"}
    assert all(row["live"]["errors"] == 0 and row["live"]["requests"] > 0 for row in ran)
    assert "wardrop ÷ Dynamo's default" in run.stdout
    assert (tmp_path / "ramp.png").stat().st_size > 10_000
