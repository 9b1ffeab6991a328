"""Selfish caching: known prices of anarchy, the exact optimum, a cache that hurts, KVBM's rule."""

import math

import numpy as np
import pytest
from scipy.sparse.csgraph import shortest_path

from wardrop.games.caching import (
    FleetCaches,
    FrequencyRule,
    ModelShape,
    PlacementGame,
    TieredCache,
    Topology,
    analyse_placement,
    basic_game,
    complete_graph,
    find_paradox,
    game_of,
    judge_placement,
    line_graph,
    optimal_placement,
    replay_caches,
    settle,
    star_graph,
)
from wardrop.games.caching.equilibria import PlacementReport
from wardrop.games.caching.frequency import placement_of
from wardrop.games.caching.graphs import (
    binary_capacitated_bound,
    complete_bound,
    line_bound,
    star_bound,
)
from wardrop.games.errors import GameError
from wardrop.games.trace import Workload, generate_trace


def rents(n: int) -> list[float]:
    return np.arange(0.5, 2.0 * n, 0.5).tolist()


@pytest.mark.parametrize("n", [2, 5, 8])
def test_complete_graph_has_price_one(n: int) -> None:
    for alpha in rents(n):
        report = analyse_placement(basic_game(complete_graph(n), alpha))
        assert report.price_of_anarchy == pytest.approx(complete_bound())


@pytest.mark.parametrize("n", [3, 6, 9])
def test_star_has_price_at_most_two_and_more_than_one(n: int) -> None:
    prices = [analyse_placement(basic_game(star_graph(n), a)).price_of_anarchy for a in rents(n)]
    assert 1.0 < max(prices) <= star_bound()


def test_star_price_nears_two_as_it_grows() -> None:
    n, alpha = 160, 2.0
    game = basic_game(star_graph(n), alpha)
    leaves = np.ones((n, 1), dtype=np.int8)
    leaves[0] = 0
    centre = np.zeros((n, 1), dtype=np.int8)
    centre[0] = 1
    assert np.array_equal(settle(game, leaves).placement, leaves)
    assert 1.95 < game.social_cost(leaves) / game.social_cost(centre) <= star_bound()


@pytest.mark.parametrize("n", [3, 6, 9, 11])
def test_line_obeys_its_bound_at_every_rent(n: int) -> None:
    for alpha in rents(n):
        price = analyse_placement(basic_game(line_graph(n), alpha)).price_of_anarchy
        assert price <= line_bound(n)


def test_line_price_grows_as_the_square_root_of_its_length() -> None:
    prices = []
    for n in (64, 256, 1024):
        game = basic_game(line_graph(n), float(n))
        end = np.zeros((n, 1), dtype=np.int8)
        end[0] = 1
        for worker in (1, n // 2, n - 1):  # nobody gains by a replica of its own
            assert not game.best_response(end, worker).any()
        even = np.zeros((n, 1), dtype=np.int8)
        even[int(math.sqrt(n)) // 1 :: 2 * int(math.sqrt(n))] = 1
        prices.append(game.social_cost(end) / game.social_cost(even))
        assert prices[-1] <= line_bound(n)
    assert prices[1] / prices[0] == pytest.approx(2.0, abs=0.35)
    assert prices[2] / prices[1] == pytest.approx(2.0, abs=0.2)


def test_capacitated_binary_preferences_stay_within_three_and_have_equilibria() -> None:
    worst, seen = 1.0, 0
    for seed in range(150):
        generator = np.random.default_rng(seed)
        edges = np.triu(generator.random((4, 4)) < 0.5, 1)
        distance = shortest_path((edges | edges.T).astype(float), unweighted=True)
        if np.isinf(distance).any():
            continue
        wants = (generator.random((4, 3)) < 0.8).astype(float)
        game = PlacementGame(wants, distance, origin=distance.max() + 1, capacity=np.ones((4, 1)))
        report = analyse_placement(game)
        assert report.equilibria > 0
        if report.optimum_cost > 0:
            worst, seen = max(worst, report.price_of_anarchy), seen + 1
    assert seen > 50
    assert 1.2 < worst <= binary_capacitated_bound()


def test_adding_a_cache_can_hurt_whichever_equilibrium_is_reached() -> None:
    found = find_paradox()
    assert found.after.best_equilibrium_cost > found.before.worst_equilibrium_cost
    assert found.after.optimum_cost <= found.before.optimum_cost + 1e-12
    extra = np.asarray(found.added.capacity) - np.asarray(found.without.capacity)
    assert extra.sum() == 1
    assert find_paradox().seed == found.seed


@pytest.mark.parametrize("seed", range(10))
def test_the_milp_is_the_enumerated_optimum(seed: int) -> None:
    generator = np.random.default_rng(seed)
    limited = seed % 2 == 0
    game = PlacementGame(
        generator.uniform(0, 3, (3, 3)),
        line_graph(3),
        rent=generator.uniform(0, 1, 2),
        read=(0.0, 0.3),
        origin=5.0,
        capacity=np.ones((3, 2)) if limited else np.inf,
    )
    assert optimal_placement(game).social_cost == pytest.approx(
        analyse_placement(game).optimum_cost
    )


@pytest.mark.parametrize("seed", range(10))
def test_the_best_response_is_the_cheapest_of_all_rows(seed: int) -> None:
    generator = np.random.default_rng(seed)
    game = PlacementGame(
        generator.uniform(0, 3, (3, 4)),
        line_graph(3),
        rent=(0.2, 0.1),
        read=(0.0, 0.4),
        origin=4.0,
        capacity=np.array([[1, 1]] * 3) if seed % 2 else np.inf,
    )
    from wardrop.games.caching.equilibria import rows_of

    placement = rows_of(game, 0)[generator.integers(0, 9, 3)]
    chosen = placement.copy()
    chosen[1] = game.best_response(placement, 1)
    costs = []
    for row in rows_of(game, 1):
        trial = placement.copy()
        trial[1] = row
        costs.append(game.costs(trial)[1])
    assert game.costs(chosen)[1] == pytest.approx(min(costs))


def test_without_limits_objects_do_not_interact() -> None:
    generator = np.random.default_rng(3)
    game = PlacementGame(generator.uniform(0, 3, (3, 2)), line_graph(3), rent=(0.8,), origin=4.0)
    from wardrop.games.caching.equilibria import _enumerate

    joint, apart = _enumerate(game), analyse_placement(game)
    assert joint.optimum_cost == pytest.approx(apart.optimum_cost)
    assert joint.worst_equilibrium_cost == pytest.approx(apart.worst_equilibrium_cost)
    assert joint.equilibria == apart.equilibria


def test_distances_rise_with_each_level_and_form_an_ultrametric() -> None:
    fleet = Topology.grid(2, 2, 2)
    size = ModelShape().block_bytes(512)
    assert size == 2 * 80 * 8 * 128 * 2 * 512
    d = fleet.distances(size)
    assert 0 == d[0, 0] < d[0, 1] < d[0, 2] < d[0, 4]
    n = fleet.workers
    for i in range(n):
        for j in range(n):
            assert (
                d[i, j] <= max(max(d[i, k], d[k, j]) for k in range(n) if k not in (i, j)) + 1e-12
            )


def test_kvbm_counts_start_at_one_double_and_decay_by_one() -> None:
    rule = FrequencyRule(decay_s=300.0)
    assert not rule.offer(7, 0.0)
    assert rule.offer(7, 1.0)
    assert rule.counts[7] == 2
    rule.offer(7, 2.0)
    assert rule.counts[7] == 4
    rule.offer(8, 301.0)
    assert rule.counts == {7: 3, 8: 1}
    rule.offer(9, 601.0)
    assert rule.counts == {7: 2, 9: 1}


def test_a_block_seen_once_never_reaches_host_memory() -> None:
    cache = TieredCache(2, 4)
    cache.serve((1, 2), 0.0)
    cache.serve((3, 4), 1.0)
    assert placement_of([cache], [1, 2, 3, 4]).tolist() == [[0, 0, 1, 1]]
    cache.serve((1, 2), 2.0)
    cache.serve((5, 6), 3.0)
    assert placement_of([cache], [1, 2, 5]).tolist() == [[2, 2, 1]]
    assert cache.overlap((1, 2, 9)) == 2
    assert len(cache.g1) <= 2
    assert len(cache.g2) <= 4


def test_today_never_beats_the_optimum_and_selfishness_lies_between() -> None:
    trace = generate_trace(Workload(8.0, 100.0, families=40), seed=1)
    fleet = FleetCaches(Topology.grid(1, 2, 2), 150, 50)
    replay = replay_caches(trace, fleet, 24, "round_robin")
    verdict = judge_placement(game_of(replay, fleet, trace), replay)
    assert verdict.converged
    assert verdict.optimum_cost <= verdict.equilibrium_cost + 1e-12
    assert verdict.price_of_today >= 1.0
    assert verdict.today_cost < verdict.nothing_cost
    assert all(cost >= verdict.optimum_cost - 1e-12 for _, cost in verdict.replication)


def test_a_trace_without_blocks_is_refused() -> None:
    trace = generate_trace(Workload(8.0, 10.0), seed=1)
    object.__setattr__(trace, "blocks", tuple(() for _ in trace.blocks))
    with pytest.raises(GameError, match="without hash_ids"):
        replay_caches(trace, FleetCaches(Topology.grid(1, 1, 2), 10, 10), 8)


def test_too_many_placements_to_enumerate_is_an_error_that_names_the_way_out() -> None:
    with pytest.raises(GameError, match="optimal_placement"):
        analyse_placement(basic_game(line_graph(20), 2.0))


def test_an_optimum_of_zero_gives_a_price_of_one_or_infinity() -> None:
    free = PlacementReport(0.0, 0.0, 0.0, 1)
    assert (free.price_of_anarchy, free.price_of_stability) == (1.0, 1.0)
    costly = PlacementReport(0.0, 0.0, 2.0, 2)
    assert (costly.price_of_anarchy, costly.price_of_stability) == (math.inf, 1.0)
    assert math.isnan(PlacementReport(0.0, math.nan, math.nan, 0).price_of_anarchy)
