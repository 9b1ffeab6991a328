"""The gateway's bench runs every arm and phase and judges its aims from what it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wardrop.dynamo.install import DynamoMissingError, dynamo_version

ROOT = Path(__file__).parents[2]
PHASES = {
    *("ids_c1", "ids_c32_t1", "ids_c32_t128", "text_c1", "text_c32_t1"),
    *("streams_c1", "talk_c8"),
}


@pytest.mark.live
@pytest.mark.heavy
@pytest.mark.timeout(300)
def test_a_quick_bench_measures_all_arms_and_states_each_aim(tmp_path: Path) -> None:
    try:
        dynamo_version(sys.executable)
    except DynamoMissingError as error:
        pytest.skip(f"NO LIVE TEST RUNS: {error}")
    result_file = tmp_path / "gateway.json"
    command = [sys.executable, "-m", "bench.gateway", "--quick", "--rounds", "1"]
    run = subprocess.run(
        [*command, "--json", str(result_file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    result = json.loads(result_file.read_text())
    assert list(result["median"]) == ["round_robin", "dynamo_kv", "wardrop", "wardrop_direct"]
    for figures in result["median"].values():
        assert set(figures) == PHASES
        for phase in figures.values():
            assert phase["requests"] >= 5
            assert phase["latency_p50_ms"] <= phase["latency_p99_ms"]
            assert phase["router_cpu_us"] > 0
    assert sum(line.startswith(("met ", "MISSED")) for line in run.stdout.splitlines()) == 10
