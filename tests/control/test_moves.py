"""Moves: bounded steps, one at a time, and back to the value that the user set."""

import pytest

from wardrop.config import CONTROLLER_MOVES
from wardrop.control import Regime
from wardrop.control.moves import MOVES, Admission, Ladder, State, moves_of

NOW = {
    "policy": "toll",
    "queue": True,
    "kappa": 10.0,
    "backlog_s": 1.0,
    "share_passes": False,
    "max_requests": 4096,
    "objective.ttft": 1.0,
    "objective.itl": 0.0,
    "objective.e2e": 2.0,
    "objective.goodput": 0.0,
}
FULL, CALM = State(Regime.SATURATED, 60.0, 400), State(Regime.BELOW)


def walk(move, state: State) -> list[float]:
    """All steps from the start, at most 50."""
    values = [move.start]
    while len(values) < 50 and (target := move.next(values[-1], state)) is not None:
        values.append(target)
    return values


def test_flags_and_moves_have_the_same_names():
    assert tuple(MOVES) == CONTROLLER_MOVES


def test_every_move_is_bounded_and_leads_back_to_the_users_own_value():
    for setting, move in moves_of(MOVES, NOW | {"share_passes": True}).items():
        assert move.start == NOW[setting]
        out = walk(move, FULL)
        assert 2 <= len(out) < 6
        assert move.next(out[-1], FULL) is None
        here = out[-1]
        while (target := move.next(here, CALM)) is not None:
            assert abs(target - move.start) < abs(here - move.start)
            here = target
        assert here == move.start, setting
        assert move.next(move.start, CALM) is None


def test_a_setting_that_does_not_exist_or_has_no_effect_is_not_moved():
    assert list(moves_of(MOVES, NOW)) == ["kappa", "objective.ttft", "max_requests"]
    alone = NOW | {"objective.e2e": 0.0}
    assert "objective.ttft" not in moves_of(MOVES, alone)
    assert moves_of(MOVES, {"policy": "dynamo", "queue": False}) == {}
    assert moves_of(["kappa"], NOW | {"kappa": 30.0}) == {}


def test_objective_weighs_ttft_at_most_three_times_all_others():
    steps = walk(moves_of(["objective"], NOW)["objective.ttft"], FULL)
    assert steps == [1.0, 3.0, 7.0]


def test_admission_falls_to_the_queue_of_the_bound_by_at_most_half():
    move = Admission(4096.0)
    assert move.next(4096.0, State(Regime.SATURATED, 29.0, 400)) is None
    assert move.next(4096.0, State(Regime.SATURATED, 40.0, 400)) == 300.0
    assert move.next(4096.0, State(Regime.SATURATED, 900.0, 400)) == 200.0, "half, not all"
    assert move.next(20.0, State(Regime.SATURATED, 900.0, 20)) == 16.0
    assert move.next(16.0, State(Regime.SATURATED, 900.0, 16)) is None
    assert move.next(16.0, State(Regime.TRANSITION)) == 32.0


def test_ladder_refuses_values_that_do_not_rise_and_positions_outside():
    with pytest.raises(ValueError, match="positions"):
        Ladder((1.0, 2.0), (0, 0, 2))
    with pytest.raises(ValueError, match="rising"):
        Ladder((2.0, 1.0), (0, 0, 1))
