"""The coupled loop: lateness makes it ring, linear theory says from where, the advice stops it."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardrop.games.coupled import (
    Planner,
    advise,
    critical_gain,
    example_fleet,
    rest_point,
    run_loop,
    spectral_radius,
)
from wardrop.games.coupled.cache import characteristic_time_s, steady_overlap
from wardrop.games.coupled.loop import initial_state, route
from wardrop.games.errors import GameError


@pytest.fixture(scope="module")
def rest():
    return rest_point(example_fleet(), seconds=450.0)


@pytest.mark.parametrize("dead", range(6))
def test_the_critical_gain_is_where_the_linear_loop_loses_stability(dead: int) -> None:
    limit = critical_gain(1.0, dead)
    assert spectral_radius(0.99 * limit, dead) < 1.0
    assert spectral_radius(limit, dead) == pytest.approx(1.0, abs=1e-9)
    assert spectral_radius(1.01 * limit, dead) > 1.0


@pytest.mark.parametrize("dead", range(4))
def test_the_linear_loop_itself_rings_past_the_critical_gain(dead: int) -> None:
    for factor, settles in ((0.8, True), (1.2, False)):
        gain, x = factor * critical_gain(1.0, dead), [1.0] * (dead + 1)
        for _ in range(400):
            x.append(x[-1] - gain * x[-1 - dead])
        assert (abs(x[-1]) < 0.1) == settles


def test_more_delay_needs_a_smaller_gain() -> None:
    limits = [critical_gain(0.5, dead) for dead in range(8)]
    assert limits == sorted(limits, reverse=True)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.01, 5), min_size=2, max_size=6), st.floats(1_000, 50_000))
def test_che_fills_the_cache_exactly(rates: list[float], capacity: float) -> None:
    flows, prefix = np.array(rates)[:, None], np.full(len(rates), 6_000.0)
    private = np.array([float(np.sum(rates)) * 500])
    time_s = characteristic_time_s(flows, prefix, private, capacity)
    overlap = steady_overlap(flows, prefix, private, capacity)
    held = (prefix[:, None] * overlap).sum(axis=0) + private * time_s
    assert held[0] == pytest.approx(capacity, rel=1e-6)
    assert np.all((overlap >= 0) & (overlap <= 1))


def test_che_agrees_with_a_simulated_lru_cache() -> None:
    generator = np.random.default_rng(0)
    rates = np.array([3.0, 1.5, 1.0, 0.5, 0.2, 0.1])
    kept: list[int] = []
    hits, asked = np.zeros(6), np.zeros(6)
    for _ in range(30_000):
        i = int(generator.choice(6, p=rates / rates.sum()))
        asked[i] += 1
        hits[i] += i in kept
        kept = [i] + [j for j in kept if j != i]
        kept = kept[:3]
    predicted = steady_overlap(rates[:, None], np.ones(6), np.zeros(1), 3.0)[:, 0]
    np.testing.assert_allclose(hits / asked, predicted, atol=0.06)


def test_a_late_eager_planner_oscillates_and_the_same_gain_without_delay_does_not(rest) -> None:
    fleet, start = example_fleet(), rest.prefill - 2
    gain = 1.0 / rest.slope
    late = run_loop(fleet, Planner(gain=gain, delay_s=120.0), start)
    prompt = run_loop(fleet, Planner(gain=gain), start)
    assert late.oscillates
    assert late.swing >= 4
    assert not prompt.oscillates


def test_waiting_for_moves_stops_the_same_planner(rest) -> None:
    fleet, start = example_fleet(), rest.prefill - 2
    patient = Planner(gain=1.0 / rest.slope, delay_s=120.0, waits=True)
    assert not run_loop(fleet, patient, start).oscillates


def test_the_advice_is_stable_where_the_default_is_not_and_exports_as_json(rest) -> None:
    advice = advise(example_fleet(), 90.0, rest)
    assert advice.default_oscillates
    assert advice.verified_stable
    assert advice.gain_workers_per_log_error < advice.critical_gain
    assert advice.prefill_workers + advice.decode_workers == 12
    assert json.loads(json.dumps(advice.as_dict()))["verified_stable"] is True


def test_a_moved_worker_starts_cold_and_overlap_recovers() -> None:
    fleet = example_fleet(step=1.0)
    history = run_loop(fleet, Planner(gain=0.0), 6, 600.0)
    assert history.overlap[0] < 0.1
    assert history.overlap[-1] > 0.5
    state = initial_state(fleet, 3)
    state.overlap[:] = 0.8
    state.resize(4)
    assert state.overlap[:, 3].tolist() == [0.0] * 6


def test_backlog_of_a_leaving_worker_is_not_lost() -> None:
    state = initial_state(example_fleet(), 4)
    state.backlog_s[:] = [1.0, 2.0, 3.0, 6.0]
    state.resize(3)
    assert state.backlog_s.sum() == pytest.approx(12.0)


def test_routing_places_every_family_and_prefers_the_worker_that_holds_it() -> None:
    fleet = replace(example_fleet(), rates=np.full(6, 0.5))
    state = initial_state(fleet, 6)
    state.overlap = np.eye(6)
    flows = route(fleet, state, fleet.rates_at(0.0))
    np.testing.assert_allclose(flows.sum(axis=1), 0.5)
    assert np.all(np.diag(flows) > 0.4)


def test_the_loop_is_deterministic() -> None:
    a, b = (run_loop(example_fleet(), Planner(delay_s=60.0), 5, 300.0) for _ in range(2))
    assert np.array_equal(a.error, b.error)


def test_wrong_inputs_say_what_was_expected() -> None:
    with pytest.raises(GameError, match="delay ≥ 0"):
        Planner(delay_s=-1.0)
    with pytest.raises(GameError, match="1 to 11 prefill workers"):
        run_loop(example_fleet(), Planner(), 12)
    with pytest.raises(GameError, match="tick of at most"):
        run_loop(example_fleet(), Planner(), 5, tick_s=60.0)
