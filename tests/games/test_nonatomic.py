"""Wardrop equilibria: bounds attained and obeyed, M/M/1 diverges, tolls bring the price to 1."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from wardrop.games.errors import GameError, NotConvexError
from wardrop.games.routing import (
    MM1,
    Affine,
    Mixed,
    NonatomicGame,
    Polynomial,
    Saturating,
    Table,
    bounds,
    equilibrium,
    optimum,
    pigou_tolls,
    price_of_anarchy,
)
from wardrop.games.routing.load_curve import load_curve


def random_game(seed: int, family: str) -> NonatomicGame:
    generator = np.random.default_rng(seed)
    rates, constants = generator.uniform(0.3, 1.0, 2), generator.uniform(0, 1, (2, 3))
    latency = {
        "affine": lambda: Affine(generator.uniform(0, 1, 3), generator.uniform(0.1, 2, 3)),
        "quadratic": lambda: Polynomial(generator.uniform(0, 1, (3, 3))),
        "mm1": lambda: MM1(generator.uniform(2.1, 4, 3)),
        "saturating": lambda: Saturating(0.1, 0.1, generator.uniform(0.1, 1, 3), 0.3, 2.5, 2.0),
    }[family]()
    return NonatomicGame(rates, constants, latency)


@pytest.mark.parametrize("family", ["affine", "quadratic", "mm1", "saturating"])
@pytest.mark.parametrize("seed", range(3))
def test_tolls_bring_the_price_of_anarchy_to_one(family: str, seed: int) -> None:
    game = random_game(seed, family)
    best = optimum(game)
    charged = equilibrium(replace(game, tolls=pigou_tolls(game, best)))
    assert charged.social_cost / best.social_cost == pytest.approx(1.0, abs=1e-6)


def test_without_tolls_some_of_those_games_lose() -> None:
    assert max(price_of_anarchy(random_game(seed, "mm1")) for seed in range(4)) > 1.001


@pytest.mark.parametrize("seed", range(4))
def test_nobody_gains_by_moving_at_the_equilibrium(seed: int) -> None:
    game = random_game(seed, "mm1")
    flow = equilibrium(game)
    cost = np.asarray(game.constants) + game.latency(flow.loads)
    excess = np.where(flow.flows > 1e-9, cost - cost.min(axis=1, keepdims=True), 0.0)
    assert excess.max() < 1e-6
    np.testing.assert_allclose(flow.flows.sum(axis=1), game.rates)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_flow_costs_less_than_the_optimum(seed: int) -> None:
    game = random_game(seed, "affine")
    best, generator = optimum(game).social_cost, np.random.default_rng(seed)
    for _ in range(300):
        flows = generator.dirichlet(np.ones(3), 2) * np.asarray(game.rates)[:, None]
        delays = game.latency(flows.sum(axis=0))
        cost = (flows * (np.asarray(game.constants) + delays)).sum()
        assert cost >= best - 1e-9


@pytest.mark.parametrize("degree", [1, 2, 3, 4])
def test_pigou_attains_the_polynomial_bound(degree: int) -> None:
    latency = Mixed([Polynomial([0.0] * degree + [1.0]), Affine(1.0, 0.0)])
    price = price_of_anarchy(NonatomicGame([1.0], [[0.0, 0.0]], latency))
    assert price == pytest.approx(bounds.nonatomic_polynomial(degree), rel=1e-9)


def test_polynomial_bounds_are_the_published_numbers() -> None:
    found = [bounds.nonatomic_polynomial(degree) for degree in (1, 2, 3, 4)]
    assert found == pytest.approx([4 / 3, 1.626, 1.896, 2.151], abs=1e-3)


@pytest.mark.parametrize("seed", range(6))
def test_every_nonatomic_instance_obeys_its_bound(seed: int) -> None:
    assert price_of_anarchy(random_game(seed, "affine")) <= bounds.nonatomic_affine() + 1e-6
    assert price_of_anarchy(random_game(seed, "quadratic")) <= bounds.nonatomic_polynomial(2)
    game = random_game(seed, "mm1")
    total, least = float(np.sum(game.rates)), float(game.latency.capacity.min())
    price = price_of_anarchy(game)
    assert 1.0 - 1e-6 <= price <= bounds.nonatomic_mm1(total, least) + 1e-6


def test_mm1_attains_its_bound_and_diverges_at_capacity() -> None:
    prices = []
    for rate in (0.5, 0.9, 0.99, 0.999, 0.9999):
        latency = Mixed([MM1(1.0), Affine(1.0 / (1.0 - rate), 0.0)])
        prices.append(price_of_anarchy(NonatomicGame([rate], [[0.0, 0.0]], latency)))
        assert prices[-1] == pytest.approx(bounds.nonatomic_mm1(rate, 1.0), rel=1e-6)
    assert all(later > 1.3 * sooner for sooner, later in pairwise(prices))
    assert prices[-1] > 50


def test_saturation_raises_the_price_only_past_the_knee() -> None:
    curve = load_curve("saturating", 13)
    assert curve[0].anarchy == pytest.approx(1.0, abs=1e-3)
    assert max(point.anarchy for point in curve) > 1.2
    assert all(point.tolled == pytest.approx(1.0, abs=1e-6) for point in curve)


def test_load_at_capacity_is_refused() -> None:
    with pytest.raises(GameError, match="less than capacity"):
        NonatomicGame([3.0], [[0.0, 0.0]], MM1([1.0, 2.0]))


def test_a_falling_marginal_cost_is_refused() -> None:
    latency = Table([0.0, 0.1, 5.0], [0.0, 1.0, 1.1])
    with pytest.raises(NotConvexError, match="marginal cost"):
        optimum(NonatomicGame([1.0], [[0.0, 0.0]], latency))


def test_the_bound_says_so_where_it_is_infinite() -> None:
    with pytest.raises(GameError, match="infinite"):
        bounds.nonatomic_mm1(1.0, 1.0)
