"""The price of anarchy where everything fits and the optimum costs nothing."""

import math

import pytest

from wardrop.games.ratio import cost_ratio
from wardrop.games.routing import AnarchyReport, NonatomicGame, price_of_anarchy
from wardrop.games.routing.latency import Affine


@pytest.mark.parametrize(
    ("cost", "optimum_cost", "ratio"),
    [(3.0, 2.0, 1.5), (2.0, 2.0, 1.0), (0.0, 0.0, 1.0), (1.0, 0.0, math.inf)],
)
def test_ratio_is_defined_for_an_optimum_of_zero(
    cost: float, optimum_cost: float, ratio: float
) -> None:
    assert cost_ratio(cost, optimum_cost) == ratio


@pytest.mark.parametrize("optimum_cost", [0.0, 2.0])
def test_ratio_of_an_unknown_cost_is_unknown(optimum_cost: float) -> None:
    assert math.isnan(cost_ratio(math.nan, optimum_cost))


def test_routing_games_without_any_delay_lose_nothing() -> None:
    free = AnarchyReport(0.0, 0.0, 0.0, 1, exact=True)
    assert (free.price_of_anarchy, free.price_of_stability) == (1.0, 1.0)
    costly = AnarchyReport(0.0, 0.0, 1.0, 2, exact=True)
    assert (costly.price_of_anarchy, costly.price_of_stability) == (math.inf, 1.0)
    assert price_of_anarchy(NonatomicGame([1.0], [[0.0, 0.0]], Affine(0.0, 0.0))) == 1.0
