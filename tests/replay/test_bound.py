"""The lower bound on the cost of any routing, and the price of anarchy that stands on it."""

from dataclasses import replace

import numpy as np
import pytest

from wardrop.replay import Engine, Fleet, affine, simulate
from wardrop.replay.bound import LIMITS, Cost, lower_bound
from wardrop.replay.generate import generate

POLICIES = ("round_robin", "least_loaded", "dynamo", "sticky", "toll", "toll+queue")
TRACES = {
    "shared prefixes": "prefixes(requests=600,per_s=30)",
    "conversations": "agents(sessions=60,per_s=2,turns=5)",
    "bursts": "bursts(requests=600,per_s=20)",
}


@pytest.mark.parametrize("fleet", [Fleet(workers=4), Fleet.split(2, 3)], ids=["whole", "split"])
@pytest.mark.parametrize("trace", TRACES)
def test_no_policy_goes_below_the_bound_at_any_load(trace, fleet):
    workload = generate(TRACES[trace], 1)
    for rate in (0.3, 1.0, 6.0):
        loaded = replace(fleet, rate=rate, anarchy_window=64)
        for policy in POLICIES:
            result = simulate(workload, loaded, policy)
            bound = result.bound
            assert bound is not None
            assert bound.requests == int(result.complete.sum())
            assert result.cost.ttft_s >= bound.all.ttft_s * (1 - 1e-9)
            assert result.cost.e2e_s >= bound.all.e2e_s * (1 - 1e-9)
            for name in LIMITS:
                part = getattr(bound, name)
                assert bound.all.ttft_s >= part.ttft_s >= bound.alone.ttft_s * (1 - 1e-9)
                assert bound.all.e2e_s >= part.e2e_s >= bound.alone.e2e_s * (1 - 1e-9)


def test_closed_loop_is_bounded_by_the_speed_of_the_fleet():
    workload = generate("paper(requests=400)", 0)
    engine = Engine(timing=affine(prefill_per_token_ms=0.1, decode_per_sequence_ms=5.0))
    fleet = Fleet(workers=2, concurrency=64, engine=engine, anarchy_window=64)
    result = simulate(workload, fleet, "dynamo")
    assert result.bound is not None
    assert 1.0 <= result.price_of_anarchy() < 1.5
    assert result.bound.work.e2e_s > 10 * result.bound.alone.e2e_s


def test_index_ranks_policies_as_their_cost_does():
    workload = generate(TRACES["shared prefixes"], 1)
    fleet = Fleet(workers=4, rate=4.0, anarchy_window=64)
    runs = [simulate(workload, fleet, policy) for policy in POLICIES]
    by_index = np.argsort([run.price_of_anarchy() for run in runs])
    by_cost = np.argsort([run.summary()["e2e_mean_s"] for run in runs])
    assert by_index.tolist() == by_cost.tolist()


def test_incomplete_requests_are_in_neither_side():
    workload = generate("prefixes(requests=50,per_s=5)", 1)
    small = Engine(num_blocks=int(np.median(workload.input_tokens)) // 64)
    result = simulate(workload, Fleet(workers=2, engine=small, anarchy_window=64), "dynamo")
    assert 0 < result.complete.sum() < 50
    assert result.bound is not None
    assert result.bound.requests == result.complete.sum()
    assert result.price_of_anarchy() >= 1.0


def test_bound_of_one_request_is_its_time_on_an_idle_worker():
    lone = generate("prefixes(requests=1,groups=1)", 0)
    timing = affine(prefill_per_token_ms=1.0, decode_base_ms=10.0)
    fleet = Fleet(workers=3, engine=Engine(timing=timing))
    bound = lower_bound(lone, fleet)
    result = simulate(lone, fleet, "toll")
    assert bound.all.ttft_s == pytest.approx(result.cost.ttft_s)
    assert bound.all.e2e_s == pytest.approx(result.cost.e2e_s)
    assert lower_bound(lone, fleet, [False]).all == Cost(0.0, 0.0)


def test_bad_input_is_refused():
    lone = generate("prefixes(requests=1,groups=1)", 0)
    with pytest.raises(ValueError, match="lifo"):
        lower_bound(lone, Fleet(workers=1, engine=Engine(preemption="fifo")))
    with pytest.raises(ValueError, match="one entry per request"):
        lower_bound(lone, Fleet(workers=1), [True, True])
    with pytest.raises(ValueError, match="at least 0"):
        Cost(1.0, 1.0).weighted(-1.0, 1.0)
    unproven = Fleet(workers=1, engine=Engine(preemption="fifo"), anarchy_window=2)
    result = simulate(lone, unproven, "dynamo")
    assert result.bound is None
    assert np.isnan(result.price_of_anarchy())
