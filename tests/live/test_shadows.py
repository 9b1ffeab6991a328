"""Shadows of a real Dynamo: a bad policy in force is seen, and wrong curves are not believed."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
from tests.live.load import Load, Mixed
from tests.live.router import Router, running
from tests.waiting import wait_until
from typer.testing import CliRunner

from wardrop.commands import shadows as shadows_command
from wardrop.commands.admin_client import ask
from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.ports import free_port

pytestmark = [
    pytest.mark.live,
    pytest.mark.usefixtures("private_network"),
    pytest.mark.timeout(300),
]

SLOWER = 3.0


def difference(router: Router, policy: str, end: str = "") -> float:
    page = router.metrics()
    return page.total(f"wardrop_shadow_difference_ratio{end}", policy=policy, figure="ttft")


def shadow_report(url: str) -> dict[str, Any]:
    """Of the one model; nothing before the shadows know of it.

    Not asked a hundred times a second: that takes the core that the engines need.
    """
    time.sleep(0.3)
    models = ask(url, "/v1/shadows")["models"]
    assert len(models) <= 1
    return models[0] if models else {}


def slowed(pools: list[Any]) -> list[Any]:
    """The same curves, slower; a record of them as the gateway takes it back."""
    for pool in pools:
        fleet = pool["record"]["fleet"]
        for curves in (fleet, *(curves for _, curves in pool["record"]["workers"])):
            for curve in curves.values():
                for name, factor in (("theta", SLOWER), ("prior", SLOWER), ("covariance", 9.0)):
                    curve[name] = [factor * value for value in curve[name]]
    return [{name: pool[name] for name in ("model", "role", "record")} for pool in pools]


class Planted:
    """Keeps curves wrong against all that is learned meanwhile, until the block ends."""

    def __init__(self, url: str, pools: list[Any]):
        self.url, self.pools = url, pools
        self.ended = threading.Event()
        self.times = 0
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Planted:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _run(self) -> None:
        while not self.ended.wait(0.1):
            ask(self.url, "/v1/curves", self.pools)
            self.times += 1


def test_a_bad_policy_in_force_is_seen_and_wrong_curves_are_not_believed():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--policy", "round_robin", "--no-queue", "--admin-port", str(port)]
    flags += ["--shadows", "toll;round_robin;toll+queue(kappa=30)"]
    flags += ["--shadows-tick-s", "1", "--shadows-lag-s", "5"]
    # Eight heads of 250 blocks: a worker holds four of them, so it matters who gets whom.
    spec = FleetSpec(workers=3, process_per_worker=False, blocks=1100)
    with Fleet(spec) as fleet, running(fleet, *flags) as router, Load(router, 32, 4, 8) as load:
        load.rate = 16.0
        started_s = time.monotonic()
        wait_until(lambda: shadow_report(url).get("ticks") == 20, "a whole window", 90)
        wait_until(lambda: shadow_report(url)["trust"]["trusted"], "trust", 60)
        print(json.dumps(shadow_report(url)["trust"]))
        print(CliRunner().invoke(shadows_command.app, ["--url", url]).output)
        low, value, high = (difference(router, "toll", end) for end in ("_low", "", "_high"))
        assert low <= value <= high < 0, "toll finds the caches that round robin misses"
        assert difference(router, "toll+queue(kappa=30)", "_high") < 0
        # The control: the policy in force beside itself.
        same = [difference(router, "round_robin", end) for end in ("_low", "", "_high")]
        assert same[0] <= 0 <= same[2] or abs(same[1]) < 0.05, same
        page = router.metrics()
        share = page.total("wardrop_shadow_cpu_seconds_total") / (time.monotonic() - started_s)
        assert share < 0.05, f"{share} of a core"
        assert page.total("wardrop_shadow_requests_total", result="dropped") == 0
        model = shadow_report(url)
        assert model["assumed_capacities"] == 0, "Dynamo reports the size of the caches"

        pools = slowed(ask(url, "/v1/curves")["pools"])
        with Planted(url, pools) as planted:
            wait_until(lambda: not shadow_report(url)["trust"]["trusted"], "doubt", 60)
        assert planted.times > 10, "the fault must have fired"
        trust = shadow_report(url)["trust"]
        assert trust["clock_ratio"] > 1.25, trust
        assert "differ too much" in trust["reason"]
        # Learned again, believed again.
        wait_until(lambda: shadow_report(url)["trust"]["trusted"], "trust", 90)


def test_both_legs_of_a_split_are_shadowed_together_and_their_clock_is_checked():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--policy", "toll", "--no-queue", "--admin-port", str(port)]
    flags += ["--shadows", "round_robin;toll"]
    flags += ["--shadows-tick-s", "1", "--shadows-lag-s", "5"]
    spec = FleetSpec(prefill=2, decode=2, process_per_worker=False, blocks=1100)
    with Fleet(spec) as fleet, running(fleet, *flags) as router, Load(router, 32, 4, 8) as load:
        load.rate = 12.0
        wait_until(lambda: shadow_report(url).get("ticks") == 20, "a whole window", 90)
        model = shadow_report(url)
        print(json.dumps(model["trust"]))
        print(CliRunner().invoke(shadows_command.app, ["--url", url]).output)
        assert (model["roles"], model["workers"]) == (["prefill", "decode"], 4)
        assert model["trust"]["measured"] > 100
        assert model["trust"]["clock_ratio"] > 0
        assert difference(router, "round_robin", "_low") > 0, "round robin misses caches"


# A tail over 20 s is a noisy figure: it takes one to four minutes to show, more on a busy machine.
# `adoption.rs` tests the rule itself.
@pytest.mark.heavy
@pytest.mark.timeout(900)
def test_what_wins_in_the_mean_and_loses_in_the_tail_is_seen_and_not_adopted():
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    flags = ["--policy", "toll", "--queue", "--queue-parameters"]
    # One prompt at a time: where small prompts share passes none waits, and κ moves nothing.
    # Without patience, long prompts wait for as long as the queue likes. The window holds all.
    flags += ["kappa=0,patience=0,backlog_s=0.2,share_passes=0,window=512"]
    flags += ["--admin-port", str(port), "--shadows", "toll+queue(kappa=100)"]
    flags += ["--shadows-tick-s", "1", "--shadows-lag-s", "5", "--shadows-calibrate"]
    spec = FleetSpec(workers=2, process_per_worker=False, blocks=8192, speedup_ratio=0.5)
    with Fleet(spec) as fleet, running(fleet, *flags) as router, Mixed(router, 300, 5) as load:
        # From the knee on, slowly: κ moves the tail only while a hundred prompts and more wait.
        started_s = time.monotonic()

        def seen() -> bool:
            load.rate = 18.0 + 0.05 * (time.monotonic() - started_s)
            model = shadow_report(url)
            if model.get("ticks") != 20:
                return False
            arm, policy = model["arms"][1], model["policies"][1]
            ratio = arm["ttft_ratio"]
            return bool(ratio and ratio["high"] < 1 and policy["does_harm"])

        wait_until(seen, "short prompts that overtake long ones", 800)
        print(CliRunner().invoke(shadows_command.app, ["--url", url]).output)
        model = shadow_report(url)
        assert model["policies"][1]["is_adoptable"], "it differs in nothing but kappa"
        assert set(model["suggested"].values()) == {None}
        assert router.metrics().total("wardrop_control_calibrator_adopted_total") == 0
        assert "calibrator_adopted_total" in router.metrics().text
        assert ask(url, "/v1/settings")["settings"]["kappa"] == 0.0
