"""The simulator answers the resource game."""

import pytest

from wardrop.games.resource import Slo, choose_split, every_split
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


@pytest.mark.parametrize(
    ("workload", "slo"),
    [
        ("prefixes(requests=400,per_s=40)", Slo(ttft_s=0.2, itl_s=0.02)),
        ("agents(sessions=60,per_s=3,turns=6)", Slo(ttft_s=0.3, itl_s=0.02)),
        ("bursts(requests=400,per_s=25)", Slo(ttft_s=0.5, itl_s=0.02)),
        ("phases(requests=400,per_s=20)", Slo(ttft_s=0.3, itl_s=0.015)),
    ],
)
def test_chosen_split_is_within_two_percent_of_every_split_in_the_simulator(
    workload: str, slo: Slo
):
    game = SimulatedAttainment(generate(workload, 1), slo, fleet=Fleet(transfer=Transfer(1e12)))
    choice, every = choose_split(game, 8), every_split(game, 8)
    goodput = [attained.goodput_rps for attained in every.values()]
    assert max(goodput) > min(goodput)
    assert choice.attainment.goodput_rps >= 0.98 * max(goodput)
