"""The bench of the live price of anarchy: its ranks, and one quick run on real Dynamo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from bench.anarchy import ROUTERS, Run, kept, ranks

from wardrop.dynamo.install import DynamoMissingError, dynamo_version

ROOT = Path(__file__).parents[2]


def measured(router: str, paid_ms: float, index: float) -> Run:
    both = {"ttft": index, "e2e": index}
    return Run(
        router=router,
        seed=1,
        rate=5.0,
        requests=100,
        paid_ms={"ttft": paid_ms, "e2e": 2 * paid_ms},
        index=both,
        interval=dict.fromkeys(both, (None, None)),
        from_records=both,
        indexed=90,
        curve_error={"prefill": 0.1, "step": 0.1},
        cpu_s=0.01,
        router_s=20.0,
        dynamo="1.6.1",
    )


@pytest.mark.parametrize(
    ("indexes", "tau"), [((3.0, 2.0, 1.5), 1.0), ((1.5, 2.0, 3.0), -1.0), ((2.0, 3.0, 1.5), 1 / 3)]
)
def test_rank_compares_the_order_of_indexes_with_the_order_of_latencies(
    indexes: tuple[float, float, float], tau: float
) -> None:
    paid = (300.0, 200.0, 100.0)
    labels = [router.label for router in ROUTERS]
    runs = [measured(*one) for one in zip(labels, paid, indexes, strict=True)]
    found = ranks(runs)
    assert [rank["tau"] for rank in found] == pytest.approx([tau, tau])
    assert found[0]["by_latency"] == labels[::-1]


@pytest.mark.live
@pytest.mark.heavy
@pytest.mark.timeout(400)
def test_a_quick_run_indexes_every_router_and_its_records_agree(tmp_path: Path) -> None:
    try:
        dynamo_version(sys.executable)
    except DynamoMissingError as error:
        pytest.skip(f"NO LIVE TEST RUNS: {error}")
    result = tmp_path / "anarchy.json"
    command = [sys.executable, "-m", "bench.anarchy", "--quick", "--seeds", "0"]
    run = subprocess.run(
        [*command, "--out", str(result)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    runs = kept(result)
    assert [one.router for one in runs] == [router.label for router in ROUTERS]
    assert len({one.requests for one in runs}) == 1, "every router gets the same requests"
    for one in runs:
        assert one.indexed >= one.requests / 2, one
        for name, index in one.index.items():
            assert index == pytest.approx(one.from_records[name], rel=0.05), one
    assert len(json.loads(result.read_text())["ranks"]) == 2
