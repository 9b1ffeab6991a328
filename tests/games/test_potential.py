"""Frozen overlap has an exact potential; overlap with whoever is there has none."""

import numpy as np
import pytest

from wardrop.games.errors import NoPotentialError
from wardrop.games.routing import (
    best_response,
    enumerate_equilibria,
    exact_potential,
    four_cycle_residual,
)
from wardrop.games.routing.equilibria import all_profiles, deviation_costs
from wardrop.games.routing.instances import random_endogenous, random_frozen


@pytest.mark.parametrize("seed", range(8))
def test_frozen_overlap_has_an_exact_potential(seed: int) -> None:
    game = random_frozen(seed, 4, 3)
    assert four_cycle_residual(game) < 1e-12
    built = exact_potential(game)
    profiles = all_profiles(4, 3)
    closed = game.potential(profiles).reshape(built.shape)
    np.testing.assert_allclose(closed - closed.flat[0], built, atol=1e-12)


def test_a_deviation_changes_the_potential_by_what_the_deviator_pays() -> None:
    generator = np.random.default_rng(0)
    game = random_frozen(3, 6, 3)
    for _ in range(200):
        profile = generator.integers(0, 3, 6).astype(np.intp)
        player, target = int(generator.integers(6)), int(generator.integers(3))
        moved = profile.copy()
        moved[player] = target
        own = game.costs(moved)[player] - game.costs(profile)[player]
        assert game.potential(moved) - game.potential(profile) == pytest.approx(own, abs=1e-12)


@pytest.mark.parametrize("rule", ["max", "earlier"])
def test_endogenous_overlap_has_no_exact_potential(rule: str) -> None:
    for seed in range(8):
        game = random_endogenous(seed, 4, 2, rule)
        assert four_cycle_residual(game) > 1e-3
        with pytest.raises(NoPotentialError, match="no exact potential"):
            exact_potential(game)


def test_pairwise_overlap_keeps_a_potential() -> None:
    for seed in range(8):
        assert four_cycle_residual(random_endogenous(seed, 4, 2, "sum")) < 1e-12


@pytest.mark.parametrize("rule", ["max", "earlier"])
def test_endogenous_overlap_sometimes_has_no_pure_equilibrium(rule: str) -> None:
    games = [random_endogenous(seed, 4, 2, rule) for seed in range(400)]
    without = [game for game in games if len(enumerate_equilibria(game).profiles) == 0]
    assert without, "some of 400 random games must have no pure equilibrium"
    rest = best_response(without[0], np.zeros(4, dtype=np.intp))
    assert not rest.converged
    assert rest.cycled


@pytest.mark.parametrize("seed", range(20))
def test_every_frozen_game_has_a_pure_equilibrium_and_best_response_finds_one(seed: int) -> None:
    game = random_frozen(seed, 6, 3)
    assert len(enumerate_equilibria(game).profiles) > 0
    start = np.random.default_rng(seed).integers(0, 3, 6).astype(np.intp)
    rest = best_response(game, start)
    assert rest.converged
    for player in range(6):
        options = deviation_costs(game, rest.profile, player)
        assert options[rest.profile[player]] <= options.min() + 1e-12


def test_the_four_cycle_test_sees_a_planted_asymmetry() -> None:
    game = random_endogenous(1, 3, 2, "sum")
    object.__setattr__(game, "shared", np.array([[0, 0.3, 0], [0.1, 0, 0], [0, 0, 0]]))
    assert four_cycle_residual(game) > 0.1
