"""A running gateway on a real Dynamo, watched and changed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.live.load import Load
from tests.live.router import Router, running
from tests.waiting import wait_until

from wardrop.commands.admin_client import AdminError, ask
from wardrop.control.regime import Regime
from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.ports import free_port

pytestmark = [
    pytest.mark.live,
    pytest.mark.usefixtures("private_network"),
    pytest.mark.timeout(300),
]


def gauge(router: Router, name: str) -> float:
    return router.metrics().total(f"wardrop_control_{name}")


def test_regime_goes_up_within_a_ramp_and_comes_back_and_changes_are_audited(tmp_path: Path):
    log, port = tmp_path / "audit.jsonl", free_port()
    flags = ["--policy", "toll", "--queue", "--controller"]
    flags += ["--admin-port", str(port), "--audit-file", str(log)]
    flags += ["--curves-file", str(tmp_path / "curves.json")]
    spec = FleetSpec(workers=2, process_per_worker=False, blocks=8192)
    with Fleet(spec) as fleet, running(fleet, *flags) as router, Load(router, 2000, 4) as load:
        # A prompt of 2,000 tokens takes the mock engine about 50 ms: the knee is near 40 a second.
        load.rate = 6.0
        wait_until(lambda: gauge(router, "ttft_baseline_seconds") > 0, "a learned baseline")
        wait_until(lambda: load.answered >= 40, "answers that the baseline rests on")
        assert gauge(router, "regime") == Regime.BELOW
        load.rate = 70.0
        surged_s = time.monotonic()
        wait_until(lambda: gauge(router, "regime") > Regime.BELOW, "a regime above below")
        print(f"seen after {time.monotonic() - surged_s:.2f} s")
        wait_until(lambda: gauge(router, "regime") == Regime.SATURATED, "saturated")
        load.rate = 6.0
        wait_until(lambda: gauge(router, "regime") == Regime.BELOW, "below again", 60)
        url = f"http://127.0.0.1:{port}"
        regimes = [r for r in ask(url, "/v1/audit?last=100") if r["event"] == "regime"]
        assert [r["after"] for r in regimes][:2] == ["TRANSITION", "SATURATED"]
        assert regimes[-1]["after"] == "BELOW"
        assert all(r["evidence"]["baseline_s"] > 0 for r in regimes)
    written = [json.loads(line) for line in log.read_text().splitlines()]
    assert [r["number"] for r in written] == list(range(1, len(written) + 1))
    kept = json.loads((tmp_path / "curves.json").read_text())
    assert kept["pools"][0]["record"]["fleet"]["prefill"]["samples"] > 50


def test_harmful_change_by_hand_is_rolled_back_by_the_guard_which_says_why():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--policy", "toll", "--queue", "--controller"]
    flags += ["--admin-port", str(port)]
    # Eight heads of 250 blocks: a worker holds those of its own, but not all of them.
    spec = FleetSpec(workers=2, process_per_worker=False, blocks=1100)
    with Fleet(spec) as fleet, running(fleet, *flags) as router, Load(router, 32, 4, 8) as load:
        load.rate = 20.0
        wait_until(lambda: gauge(router, "guard_ready") == 1, "samples to judge a change against")
        before: dict[str, Any] = ask(url, "/v1/settings")["settings"]
        harm = {"policy": "round_robin"}
        change = ask(url, "/v1/settings", {"changes": harm, "reason": "planted"})
        with pytest.raises(AdminError, match="the values in force"):
            ask(url, "/v1/settings", {"changes": harm})
        assert ask(url, "/v1/settings")["settings"]["policy"] == "round_robin"

        wait_until(lambda: gauge(router, "change_on_trial") == 1, "a trial")

        def undone() -> bool:
            records = ask(url, "/v1/audit?last=100")
            return any(r["event"] == "rolled_back" and r["of"] == change["number"] for r in records)

        wait_until(undone, "a roll-back", 150)
        (record,) = [r for r in ask(url, "/v1/audit?last=100") if r["of"] == change["number"]]
        print(record["reason"])
        assert record["by"] == "controller"
        assert "went from" in record["reason"]
        assert ask(url, "/v1/settings")["settings"] == before
