"""The calibrator on planted reports, through a real gateway's door."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest

from wardrop._core import Gateway
from wardrop.control.audit import CONTROLLER, HAND
from wardrop.control.calibrator import Calibrator
from wardrop.control.door import Door
from wardrop.control.loop import ControlLoop
from wardrop.control.sample import Sample

TOLL = {
    "name": "toll",
    "ttft": 1.0,
    "itl": 0.0,
    "e2e": 0.0,
    "goodput": 0.0,
    "ttft_slo_s": 2.0,
    "itl_slo_s": 0.05,
}
RATIO = {"value": 0.8, "low": 0.75, "high": 0.85, "p": 1e-4}


class Planted:
    """A real gateway whose shadows say what the test wants."""

    def __init__(self, native: Gateway):
        self.native = native
        self.gauges: dict[str, float] = {}
        self.model: dict[str, Any] = {
            "model": "m",
            "ticks": 20,
            "window_ticks": 20,
            "age_s": 21.0,
            "requests_per_cache": 50.0,
            "trust": {"trusted": True, "reason": None, "clock_ratio": 1.05, "measured": 900},
            "policies": [
                {"name": "in_force", "policy": TOLL, "queue": {"kappa": 10}},
                {"name": "k30", "policy": TOLL, "queue": {"kappa": 30}},
                {"name": "e2e", "policy": TOLL | {"e2e": 1.0, "ttft": 0.0}, "queue": {"kappa": 10}},
            ],
            "arms": [{"ttft_ratio": None}, {"ttft_ratio": RATIO}, {"ttft_ratio": RATIO}],
            "suggested": {"ttft": "k30", "itl": None, "e2e": "e2e", "goodput": None},
        }
        self.models = [self.model]

    def sample(self) -> str:
        return self.native.sample()

    def shadows(self) -> str:
        return json.dumps(self.models)

    def set_figures(self, figures_json: str, /) -> None:
        self.gauges |= json.loads(figures_json)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def native():
    routing = {"policy": {"name": "toll"}, "queue": {"kappa": 10}}
    gateway = Gateway(json.dumps({"listen": "127.0.0.1:0", "routing": routing}))
    yield gateway
    gateway.stop()


@pytest.fixture
def door(native):
    return Door(native)


def test_a_proven_candidate_goes_through_the_door_with_its_evidence(native, door):
    changed_by: list[str] = []
    door.on_change = lambda record: changed_by.append(record.by)
    planted = Planted(native)
    record = Calibrator(planted, door).poll()
    assert record is not None
    assert (record.by, record.setting, record.before, record.after) == (
        "calibrator",
        "kappa",
        10.0,
        30.0,
    )
    assert record.evidence["ratio_high"] == 0.85
    assert record.evidence["clock_ratio"] == 1.05
    assert "shadow k30: ttft 0.800 of the policy in force" in record.reason
    assert door.settings()["kappa"] == 30.0
    assert changed_by == ["calibrator"], "the guard must hear of it"
    assert planted.gauges["calibrator_adopted_total"] == 1
    assert door.roll_back(HAND, "").of == record.number
    assert door.settings()["kappa"] == 10.0


@pytest.mark.parametrize(
    ("plant", "says"),
    [
        ({"ticks": 19}, "19 of 20 ticks"),
        ({"age_s": 61.0}, "61 s old"),
        ({"age_s": None}, "old"),
        ({"requests_per_cache": 3.0}, "bistable"),
        ({"trust": {"trusted": False, "reason": "differ too much"}}, "differ too much"),
        ({"suggested": {"ttft": None}}, "no candidate"),
    ],
)
def test_without_proof_nothing_moves(native, door, plant, says):
    planted = Planted(native)
    planted.model |= plant
    calibrator = Calibrator(planted, door)
    assert calibrator.poll() is None
    assert says in calibrator.reason
    assert door.records() == []


def test_models_must_agree_and_only_toll_is_calibrated(native, door):
    planted = Planted(native)
    planted.models = [planted.model, planted.model | {"suggested": {"ttft": "e2e"}}]
    calibrator = Calibrator(planted, door)
    assert calibrator.poll() is None
    planted.models = [planted.model, {"model": "n", "note": "no worker yet"}]
    door.change({"policy": "dynamo"}, HAND, "")
    assert calibrator.poll() is None
    assert "only toll is calibrated" in calibrator.reason
    door.roll_back(HAND, "")
    assert calibrator.poll() is not None


def test_a_change_on_trial_is_waited_for(native, door):
    calibrator = Calibrator(Planted(native), door, busy=lambda: True)
    assert calibrator.poll() is None
    assert "on trial" in calibrator.reason


def test_a_change_by_hand_is_left_alone_until_its_roll_back(native, door):
    planted = Planted(native)
    calibrator = Calibrator(planted, door)
    door.change({"kappa": 5}, HAND, "mine")
    assert calibrator.poll() is None
    assert "kappa: changed by hand" in calibrator.reason
    door.roll_back(HAND, "")
    record = calibrator.poll()
    assert record is not None
    assert record.setting == "kappa"


def test_the_goal_is_set_by_hand_and_does_not_drift_with_adoptions(native, door):
    planted = Planted(native)
    planted.model["suggested"] = {"ttft": "e2e", "e2e": "k30", "itl": None, "goodput": None}
    calibrator = Calibrator(planted, door)
    record = calibrator.poll()
    assert record is not None
    assert record.setting == "objective.e2e, objective.ttft"
    # The objective in force weighs e2e now; what the calibrator serves is still the first token.
    planted.model["suggested"] = {"ttft": None, "e2e": "k30", "itl": None, "goodput": None}
    assert calibrator.poll() is None
    door.change({"objective.e2e": 2.0}, HAND, "")
    planted.model["arms"][1]["e2e_ratio"] = RATIO
    assert calibrator.poll() is None
    assert "objective" in calibrator.reason
    assert "by hand" in calibrator.reason


@pytest.mark.parametrize(
    ("by", "least_s", "most_s"), [(CONTROLLER, 600, 601), (HAND, 6 * 3600, 6 * 3601)]
)
def test_a_candidate_that_was_rolled_back_waits_longer_each_time(native, door, by, least_s, most_s):
    clock = Clock()
    planted = Planted(native)
    calibrator = Calibrator(planted, door, clock=clock)
    pause_s = least_s
    for _ in range(2):
        record = calibrator.poll()
        assert record is not None
        door.roll_back(by, "harm")
        assert calibrator.poll() is None
        assert "paused after a roll-back" in calibrator.reason
        clock.now_s += pause_s - 1
        assert calibrator.poll() is None
        clock.now_s += most_s - least_s + 1
        pause_s = min(2 * pause_s, 6 * 3600)
        most_s, least_s = pause_s + 1, pause_s
    assert planted.gauges["calibrator_rolled_back_total"] == 2


def test_the_guard_judges_an_adoption_and_rolls_harm_back(native, door):
    planted = Planted(native)
    loop = ControlLoop(planted, door, acts=True)
    controller = loop.controller
    calibrator = Calibrator(planted, door, lambda: controller.on_trial)
    calm = Sample(20, 0.1, 0.2, 0.01, 2.0, 0.3, arrivals_per_s=10.0)
    now_s = time.monotonic()
    for i in range(12):
        assert controller.step(now_s - 12 + i, calm) is None
    record = calibrator.poll()
    assert record is not None
    assert controller.on_trial
    assert calibrator.poll() is None, "one at a time"
    action = None
    for i in range(40):
        action = action or controller.step(now_s + 3 + i, replace(calm, ttft_mean_s=0.2))
    assert action is not None
    assert action.event == "rolled_back"
    loop._act(action)
    assert door.settings()["kappa"] == 10.0
    assert door.records()[-1].of == record.number
    assert calibrator.poll() is None
    assert planted.gauges["calibrator_rolled_back_total"] == 1
