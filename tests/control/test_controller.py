"""The controller, step by step: regimes without latching, changes that must prove themselves."""

from dataclasses import replace

import numpy as np
import pytest

from wardrop.control import (
    AuditLog,
    Controller,
    GuardSettings,
    Regime,
    RegimeDetector,
    RegimeSettings,
    Sample,
    Settings,
    knee_load,
    read_audit,
)

CALM = Sample(20, 0.1, 0.2, 0.01, 2.0, 0.3, arrivals_per_s=10.0)


def at(p99_s: float, **changes: float) -> Sample:
    return replace(CALM, ttft_p99_s=p99_s, **changes)


def feed(detector: RegimeDetector, start_s: float, samples: list[Sample]) -> list[Regime]:
    return [detector.step(start_s + i * 0.5, sample) for i, sample in enumerate(samples)]


def test_all_three_regimes_are_reached_and_left_in_both_directions() -> None:
    detector = RegimeDetector(RegimeSettings(dwell_s=1.0))
    up = feed(detector, 0.0, [at(0.2)] * 10 + [at(1.0)] * 20 + [at(5.0)] * 20)
    assert up[9] is Regime.BELOW
    assert Regime.TRANSITION in up[10:30]
    assert up[-1] is Regime.SATURATED
    down = feed(detector, 25.0, [at(0.2)] * 60)
    assert Regime.TRANSITION in down
    assert down[-1] is Regime.BELOW


def test_thresholds_are_relative_to_the_fleets_own_baseline() -> None:
    slow, fast = (RegimeDetector(RegimeSettings(dwell_s=1.0)) for _ in range(2))
    slow_path = feed(slow, 0.0, [at(2.0)] * 10 + [at(10.0)] * 20)
    fast_path = feed(fast, 0.0, [at(0.02)] * 10 + [at(0.1)] * 20)
    assert slow_path == fast_path


def test_one_bad_sample_changes_nothing_and_the_edge_does_not_flap() -> None:
    detector = RegimeDetector()
    assert set(feed(detector, 0.0, [at(0.2)] * 20 + [at(3.0)] + [at(0.2)] * 20)) == {Regime.BELOW}
    edge = [at(0.58 + 0.04 * (i % 2)) for i in range(200)]
    changes = np.count_nonzero(np.diff([int(r) for r in feed(detector, 30.0, edge)]))
    assert changes <= 1


def test_stale_samples_are_not_looked_at_and_silence_leads_back_to_below() -> None:
    detector = RegimeDetector(RegimeSettings(dwell_s=1.0))
    assert feed(detector, 0.0, [at(0.2)] * 10 + [at(9.0)] * 20)[-1] is Regime.SATURATED
    stale = [at(0.2, age_s=60.0)] * 20
    assert feed(detector, 20.0, stale)[-1] is Regime.SATURATED
    assert detector.step(80.0, at(9.0, age_s=60.0)) is Regime.BELOW


def test_saturation_is_seen_within_two_seconds() -> None:
    detector = RegimeDetector(RegimeSettings(dwell_s=0.5))
    feed(detector, 0.0, [at(0.2)] * 40)
    seen = [detector.step(20.0 + 0.25 * i, at(20.0)) for i in range(8)]
    assert seen[3] is not Regime.BELOW
    assert seen[-1] is Regime.SATURATED


def run(controller: Controller, seconds: int, sample_of) -> list[tuple[float, float]]:
    done = []
    for i in range(2 * seconds):
        action = controller.step(i * 0.5, sample_of(controller, i * 0.5))
        if action:
            done.append((i * 0.5, action.value))
    return done


def loaded(controller: Controller, now_s: float) -> Sample:
    return at(0.2) if now_s < 20 else at(6.0, ttft_mean_s=3.0)


def test_helpful_change_is_made_step_by_step_and_kept() -> None:
    def helped(controller: Controller, now_s: float) -> Sample:
        sample = loaded(controller, now_s)
        return replace(sample, ttft_mean_s=sample.ttft_mean_s / (1 + controller.value("kappa")))

    controller = Controller()
    done = run(controller, 120, helped)
    assert [value for _, value in done] == [20.0, 30.0]
    events = [record.event for record in controller.records()]
    assert events.count("kept") == 2
    assert "rolled_back" not in events


def test_harmful_change_is_rolled_back_with_a_reason_and_backs_off() -> None:
    def harmed(controller: Controller, now_s: float) -> Sample:
        sample = loaded(controller, now_s)
        return replace(sample, e2e_mean_s=2.0 + controller.value("kappa") / 10)

    controller = Controller()
    done = run(controller, 400, harmed)
    values = [value for _, value in done]
    assert values[:2] == [20.0, 10.0]
    assert controller.value("kappa") in (10.0, 20.0)
    tries = [at_s for at_s, value in done if value == 20.0]
    gaps = np.diff(tries)
    assert (gaps[1:] > 1.5 * gaps[:-1]).all(), "each try must wait longer than the last"
    rolled = [record for record in controller.records() if record.event == "rolled_back"]
    assert rolled
    assert "e2e_mean_s" in rolled[0].reason
    assert rolled[0].evidence["e2e_mean_s_after"] > rolled[0].evidence["e2e_mean_s_before"]


def test_change_that_cannot_be_compared_is_rolled_back() -> None:
    def drifting(controller: Controller, now_s: float) -> Sample:
        sample = loaded(controller, now_s)
        trial = controller.guard.busy
        return replace(sample, arrivals_per_s=100.0 if trial else 10.0)

    controller = Controller(Settings(guard=GuardSettings(max_trial_s=20.0)))
    assert [value for _, value in run(controller, 60, drifting)][:2] == [20.0, 10.0]


def test_nothing_is_changed_below_the_knee() -> None:
    assert run(Controller(), 300, lambda controller, now_s: at(0.2)) == []


def test_change_by_hand_goes_through_the_same_door() -> None:
    controller = Controller()
    for i in range(20):
        controller.step(i * 0.5, CALM)
    action = controller.by_hand(10.0, "kappa", 0, "a person asked")
    assert action.value == 0.0
    for i in range(20):
        controller.step(12.5 + i * 0.5, replace(CALM, ttft_mean_s=0.5))
    assert controller.value("kappa") == 10.0, "harm by hand must be rolled back too"
    with pytest.raises(ValueError, match="expected one of"):
        controller.by_hand(30.0, "kapa", 0, "")


def test_audit_survives_a_torn_line_and_stays_bounded(tmp_path) -> None:
    controller = Controller()
    run(controller, 60, loaded)
    records = list(controller.records())
    log = AuditLog(tmp_path / "audit.jsonl", limit_bytes=2000)
    for record in records * 20:
        log.write(record)
    assert log.path.stat().st_size < 2600
    with log.path.open("a") as file:
        file.write('{"at_s": 1')
    assert next(iter(read_audit(log.path))).event in {"regime", "change", "kept", "rolled_back"}


def test_knee_is_where_latency_bends_most() -> None:
    loads = np.arange(1.0, 11.0)
    latency = 1.0 + 0.1 * loads + 5.0 * np.maximum(0.0, loads - 7.0)
    assert knee_load(loads, latency) == 7.0
    assert knee_load(loads, 1.0 + 0.1 * loads) is None
    with pytest.raises(ValueError, match="rise"):
        knee_load(loads[::-1].copy(), latency)
