"""The controller of a gateway in a simulated fleet: the same door, deterministic, and no harm."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from wardrop.commands.replay import app
from wardrop.control import GuardSettings, Record, Settings
from wardrop.errors import InputError
from wardrop.replay import Engine, Fleet, Policy, affine, simulate
from wardrop.replay.controlled import ControlledRun
from wardrop.replay.generate import prefixes
from wardrop.replay.workload import Workload

TIMING = affine(
    prefill_base_ms=2.0, prefill_per_token_ms=0.05, decode_base_ms=8.0, decode_per_sequence_ms=0.1
)
FLEET = Fleet(workers=2, engine=Engine(timing=TIMING, num_blocks=1_500))
SHAPE = {"groups": 60, "prefix": 1024, "suffix": 256, "output": 16, "zipf": 0.0}
"""60 prefixes of 16 blocks: one worker holds hardly more than those that it serves."""


def loaded(phases: list[tuple[float, float]], seed: int = 1, **shape: float) -> Workload:
    """Poisson arrivals at each (rate, until) in turn."""
    rng = np.random.default_rng(seed)
    at_s: list[float] = []
    now_s = 0.0
    for rate, until_s in phases:
        while now_s < until_s:
            now_s += rng.exponential(1 / rate)
            at_s.append(now_s)
    base = prefixes(requests=len(at_s), per_s=1.0, seed=seed, **{**SHAPE, **shape})
    return replace(base, arrival_ms=np.asarray(at_s) * 1e3)


OVER = loaded([(15, 40), (220, 100), (15, 200)])


def changes(audit: tuple[Record, ...], setting: str) -> list[float]:
    return [r.after for r in audit if r.event in ("change", "rolled_back") and r.setting == setting]


def test_watching_leaves_the_run_as_it_is():
    for fleet in (FLEET, Fleet.split(2, 2, engine=FLEET.engine)):
        plain = simulate(OVER, fleet, "toll+queue", seed=3)
        watched = simulate(OVER, fleet, "toll+queue+controller(acts=false)", seed=3)
        for name in ("first_token_ms", "end_ms", "worker", "decode_worker", "gap_counts"):
            assert getattr(watched, name).tobytes() == getattr(plain, name).tobytes()
        assert {record.event for record in watched.audit} == {"regime"}
        assert watched.audit[-1].after == "BELOW"


def test_it_acts_through_the_door_and_equal_seeds_give_equal_runs():
    one, same = (simulate(OVER, FLEET, "toll+queue+controller", seed=3) for _ in range(2))
    assert one.end_ms.tobytes() == same.end_ms.tobytes()
    assert one.audit == same.audit
    assert [record.number for record in one.audit] == list(range(1, len(one.audit) + 1))
    assert changes(one.audit, "kappa")[0] == 20.0
    first = next(r for r in one.audit if r.event == "change")
    assert 40 < first.at_s < 60
    assert first.evidence["ttft_mean_s_before"] > 0
    figures = one.summary()
    assert figures["changes"] >= figures["changes_kept"] + figures["changes_rolled_back"] - 1
    assert "changes" not in simulate(OVER, FLEET, "toll+queue", seed=3).summary()


def test_every_trial_ends_under_the_number_of_its_change():
    audit = simulate(OVER, FLEET, "toll+queue+controller", seed=3).audit
    made = {r.number: r for r in audit if r.event == "change"}
    ends = [r for r in audit if r.event in ("kept", "rolled_back")]
    assert ends
    for end in ends:
        change = made[end.of]
        assert change.at_s < end.at_s <= change.at_s + 121
        assert end.setting == change.setting
        assert end.evidence["ttft_mean_s_predicted"] > 0
        if end.event == "rolled_back":
            assert end.after == change.before
            assert end.reason


def test_admission_refuses_only_beyond_the_bound_and_opens_again():
    asked = "toll+queue(kappa=10)+controller(moves=admission)"
    result = simulate(OVER, FLEET, asked, seed=3)
    limits = [r.after for r in result.audit if r.event == "change"]
    assert limits[0] < 4096
    assert result.summary()["failed"] > 0
    calm = simulate(loaded([(15, 120)]), FLEET, asked, seed=3)
    assert calm.summary()["failed"] == 0
    assert [r for r in calm.audit if r.event == "change"] == []


def test_objective_moves_to_ttft_only_if_it_has_other_parts():
    mixed = simulate(OVER, FLEET, "toll(ttft=0,e2e=1)+queue+controller(moves=objective)", seed=3)
    assert changes(mixed.audit, "objective.ttft")[0] == 1.0
    pure = simulate(OVER, FLEET, "toll+queue+controller(moves=objective)", seed=3)
    assert changes(pure.audit, "objective.ttft") == []
    other = simulate(OVER, FLEET, "dynamo+queue+controller(moves=objective)", seed=3)
    assert changes(other.audit, "objective.ttft") == []


def test_room_moves_only_with_shared_passes():
    alone = "toll+queue(share_passes=false)+controller(moves=room)"
    assert changes(simulate(OVER, FLEET, alone, seed=3).audit, "backlog_s") == []
    shared = "toll+queue+controller(moves=room)"
    assert changes(simulate(OVER, FLEET, shared, seed=3).audit, "backlog_s")[0] == 0.5


def regimes(workload: Workload) -> list[tuple[float, str]]:
    roomy = Fleet(workers=2, engine=Engine(timing=TIMING))
    audit = simulate(workload, roomy, "toll+queue+controller(acts=false)", seed=3).audit
    return [(r.at_s, r.after) for r in audit]


def test_surge_beyond_capacity_is_seen_within_a_second_and_a_calm_fleet_is_not_alarmed():
    for seed in range(3):
        seen = regimes(loaded([(15, 40), (220, 60)], seed))
        first_s = next(at_s for at_s, to in seen if to != "BELOW")
        assert 40.0 < first_s <= 41.0
        assert regimes(loaded([(30, 200)], seed)) == []


def planted(change: dict[str, object], policy: str, rate: float, seed: int, forecasts: bool):
    """What became of a change by hand at second 50 of a steady load."""
    settings = Settings({}, guard=GuardSettings(forecasts=forecasts))
    chosen = Policy.parse(policy)
    run = ControlledRun(
        loaded([(rate, 110)], seed), FLEET, chosen.routers(FLEET, seed), seed, {}, settings=settings
    )
    run.advance(50.0)
    number = run.door.change(change, "hand", "planted").number
    run.advance(110.0)
    return next((record for record in run.audit if record.of == number), None)


@pytest.mark.parametrize("rate", [75.0, 90.0])
def test_planted_harm_is_rolled_back_at_the_knee_and_over_it(rate):
    for seed in range(3):
        verdict = planted({"policy": "round_robin"}, "toll+queue", rate, seed, True)
        assert verdict is not None
        assert verdict.event == "rolled_back"
        assert "went from" in verdict.reason


def test_good_change_under_a_growing_queue_is_kept_by_the_forecast_alone():
    kept = {True: 0, False: 0}
    for forecasts in kept:
        for seed in range(3):
            verdict = planted({"policy": "toll"}, "round_robin+queue", 108.0, seed, forecasts)
            assert verdict is not None
            kept[forecasts] += verdict.event == "kept"
    assert kept[True] == 3
    assert kept[False] < 3, "before against after takes the queue's growth for harm"


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        ("toll+queue+controller(moves=kapa)", "kapa"),
        ("toll+queue+controller(period=1)", "period"),
        ("toll+queue+controller(period_ms=0)", "period_ms"),
        ("toll+queue+control", "controller"),
    ],
)
def test_an_unknown_parameter_is_refused_by_name(policy, text):
    with pytest.raises(InputError, match=text):
        simulate(OVER, FLEET, policy)


def test_the_command_takes_it_as_part_of_a_policy(tmp_path):
    path = tmp_path / "cells.json"
    policy = "toll+queue(kappa=10)+controller(moves=kappa|admission)"
    trace = "prefixes(requests=200,per_s=20)"
    done = CliRunner().invoke(app, [trace, "--policy", policy, "--json", str(path)])
    assert done.exit_code == 0, done.output
    (cell,) = json.loads(path.read_text())["cells"]
    assert Policy.parse(cell["policy"]) == Policy.parse(policy)
