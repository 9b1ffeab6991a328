"""The simulator answers the resource game."""

from wardrop.games.resource import Slo
from wardrop.replay import Fleet, Transfer
from wardrop.replay.attainment import SimulatedAttainment
from wardrop.replay.generate import generate


def source():
    workload = generate("prefixes(requests=200,per_s=30)", 2)
    fleet = Fleet(transfer=Transfer(1e12))
    return SimulatedAttainment(workload, Slo(ttft_s=0.15, itl_s=0.02), fleet=fleet)


def test_more_prefill_workers_attain_no_less_and_shares_are_shares():
    game = source()
    few, many = game.attainment(1, 2), game.attainment(4, 2)
    assert 0 <= few.both <= min(few.ttft, few.itl) <= 1
    assert many.ttft >= few.ttft
    assert many.goodput_rps >= few.goodput_rps


def test_a_split_is_simulated_once_and_answers_the_same():
    game = source()
    assert game.attainment(2, 2) is game.attainment(2, 2)
    assert game.attainment(2, 2) == source().attainment(2, 2)
