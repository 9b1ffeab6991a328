"""The routing optimum is exact, small, dense and large; equilibria obey the classical bounds."""

import numpy as np
import pytest

from wardrop.games.errors import GameError, NotConvexError
from wardrop.games.routing import (
    MM1,
    Affine,
    FrozenOverlapGame,
    Polynomial,
    Saturating,
    SparseGame,
    Table,
    analyse,
    analyse_large,
    best_response,
    bounds,
    enumerate_equilibria,
    greedy,
    optimal_assignment,
    potential_minimiser,
    social_cost,
    solve_flow,
)
from wardrop.games.routing.equilibria import all_profiles
from wardrop.games.routing.game import slot_delays
from wardrop.games.routing.instances import random_frozen, random_sparse
from wardrop.games.routing.optimum import _assign


def dense(game: SparseGame) -> FrozenOverlapGame:
    constants = np.repeat(game.base[:, None], game.workers, axis=1)
    constants[game.request, game.worker] -= game.saving
    return FrozenOverlapGame(constants, game.latency)


@pytest.mark.parametrize("seed", range(12))
def test_the_assignment_is_the_enumerated_optimum(seed: int) -> None:
    generator = np.random.default_rng(seed)
    constants = generator.uniform(0, 1, (6, 3))
    latency = [
        Affine(0.1, generator.uniform(0.1, 1, 3)),
        Polynomial([0.1, 0.0, 0.2]),
        MM1([7.5, 8.5, 9.5]),
        Saturating(0.1, 0.02, 0.1, 2.0, 9.0),
    ][seed % 4]
    game = FrozenOverlapGame(constants, latency)
    found = optimal_assignment(game)
    assert found.social_cost == pytest.approx(enumerate_equilibria(game).optimum_cost, rel=1e-12)
    assert found.social_cost == pytest.approx(game.costs(found.profile).sum(), rel=1e-12)


def test_slots_that_cost_the_delay_instead_of_the_marginal_miss_the_optimum() -> None:
    missed = 0
    for seed in range(12):
        game = random_frozen(seed, 6, 3)
        wrong = social_cost(game, _assign(game, slot_delays(game.latency, 3, 6)))
        missed += wrong > optimal_assignment(game).social_cost + 1e-9
    assert missed > 0


@pytest.mark.parametrize("seed", range(10))
def test_the_potential_minimiser_is_an_equilibrium(seed: int) -> None:
    game = random_frozen(seed, 7, 3)
    found = potential_minimiser(game)
    assert game.potential(found.profile) == pytest.approx(game.potential(all_profiles(7, 3)).min())
    assert best_response(game, found.profile).moves == 0


@pytest.mark.parametrize("seed", range(8))
def test_the_flow_is_the_dense_optimum_and_its_certificate_closes(seed: int) -> None:
    game = random_sparse(seed, 60, 12, holders=3)
    flow = solve_flow(game)
    assert flow.objective == pytest.approx(optimal_assignment(dense(game)).social_cost, rel=1e-9)
    assert flow.objective == pytest.approx(game.social_cost(flow.profile), rel=1e-12)
    assert abs(flow.gap_seconds) < 1e-9


def test_the_flow_goes_deeper_than_its_first_slots() -> None:
    latency = Affine(np.array([0.0, 5.0, 5.0, 5.0]), np.array([1e-4, 1.0, 1.0, 1.0]))
    none = np.array([], dtype=np.intp)
    game = SparseGame(np.full(40, 0.1), none, none, np.array([]), latency)
    assert np.all(solve_flow(game).profile == 0)


def test_flow_equilibrium_is_stable() -> None:
    game = random_sparse(5, 80, 10, holders=3)
    rest = solve_flow(game, "potential").profile
    assert best_response(dense(game), rest).moves == 0


def test_tolls_make_the_optimum_an_equilibrium_of_the_atomic_game() -> None:
    untolled_moves = 0
    for seed in range(8):
        generator = np.random.default_rng(seed)
        constants, slope = generator.uniform(0, 0.5, (7, 3)), generator.uniform(0.05, 0.3, 3)
        game = FrozenOverlapGame(constants, Affine(0.5, slope))
        best = optimal_assignment(game)
        marginal = Affine(0.5 - slope, 2 * slope)  # k·ℓ(k) − (k−1)·ℓ(k−1) of ℓ(k) = 0.5 + slope·k
        assert best_response(FrozenOverlapGame(constants, marginal), best.profile).moves == 0
        untolled_moves += best_response(game, best.profile).moves
    assert untolled_moves > 0


def test_greedy_is_optimal_on_identical_workers_without_caches() -> None:
    for requests in (5, 17, 40):
        game = FrozenOverlapGame(np.zeros((requests, 4)), Affine(0.1, 0.2))
        best = optimal_assignment(game).social_cost
        assert social_cost(game, greedy(game)) == pytest.approx(best)


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_every_atomic_instance_obeys_its_bound(degree: int) -> None:
    worst = 1.0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        coefficients = generator.exponential(1.0, (degree + 1, 3)) * (
            generator.random((degree + 1, 3)) < 0.5
        )
        game = FrozenOverlapGame(generator.exponential(1, (5, 3)), Polynomial(coefficients))
        report = analyse(game)
        assert 1.0 - 1e-12 <= report.price_of_stability <= report.price_of_anarchy + 1e-12
        worst = max(worst, report.price_of_anarchy)
        if degree == 1:
            assert report.price_of_stability <= bounds.atomic_affine_stability() + 1e-12
    assert 1.05 < worst <= bounds.atomic_polynomial(degree)


def test_atomic_bounds_are_the_published_numbers() -> None:
    assert bounds.atomic_polynomial(1) == bounds.atomic_affine() == 2.5
    assert bounds.atomic_polynomial(2) == pytest.approx(115 / 12)
    assert bounds.atomic_polynomial(3) == pytest.approx(41.5357, abs=1e-3)


def test_sampled_equilibria_lie_between_stability_and_anarchy() -> None:
    for seed in range(6):
        game = random_frozen(seed, 6, 3)
        exact, sampled = analyse(game), analyse_large(game, seed)
        assert sampled.optimum_cost == pytest.approx(exact.optimum_cost)
        assert sampled.price_of_anarchy <= exact.price_of_anarchy + 1e-12
        assert sampled.price_of_stability >= exact.price_of_stability - 1e-12
        assert not sampled.exact


def test_a_concave_worker_is_refused_by_name() -> None:
    game = FrozenOverlapGame(np.zeros((6, 1)), Table([1.0, 2.0, 9.0], [0.1, 5.0, 5.1]))
    with pytest.raises(NotConvexError, match="worker 0"):
        optimal_assignment(game)


def test_too_many_requests_for_the_fleet_is_an_error() -> None:
    with pytest.raises(GameError, match="room for every request"):
        FrozenOverlapGame(np.zeros((9, 2)), MM1([4.0, 4.0]))
    none = np.array([], dtype=np.intp)
    with pytest.raises(GameError, match="in-flight limits"):
        solve_flow(SparseGame(np.ones(9), none, none, np.array([]), MM1([4.0, 4.0])))


def test_negative_constants_are_refused() -> None:
    with pytest.raises(GameError, match="not minus the seconds saved"):
        FrozenOverlapGame([[-1.0, 0.0]], Affine(1.0, 1.0))


@pytest.mark.heavy
def test_four_thousand_workers_and_ten_thousand_requests_are_solved_exactly() -> None:
    game = random_sparse(1, 10_000, 4_096)
    flow = solve_flow(game)
    assert abs(flow.gap_seconds) < 1e-6
    assert flow.objective == pytest.approx(game.social_cost(flow.profile))
