"""The paper's controller in a simulated fleet: three regimes, both ways, on both legs."""

import numpy as np
import pytest

from wardrop import Router
from wardrop.replay import Engine, Fleet, Policy, affine, simulate
from wardrop.replay.generate import phases
from wardrop.replay.run import Result

RAMP = phases(
    steps=(0.2, 4.0, 0.2), requests=3600, per_s=10.0, groups=1, prefix=64, suffix=1024, output=16
)
"""2, then 40, then 2 requests a second, where two workers compute some 19."""
ENGINE = Engine(timing=affine(prefill_per_token_ms=0.1, decode_base_ms=5.0))


def regimes(result: Result, pool: int = 0) -> list[str]:
    return [change[1] for change in result.regimes[pool]]


@pytest.mark.parametrize(
    "fleet", [Fleet(workers=2, engine=ENGINE), Fleet.split(2, 3, engine=ENGINE)]
)
def test_all_regimes_are_reached_through_a_ramp_and_left_after_it(fleet):
    policy = Policy("paper", {"enter": [3.0, 30.0], "dwell_s": 10.0})
    result = simulate(RAMP, fleet, policy)
    for pool in range(len(result.regimes)):
        seen = regimes(result, pool)
        assert {"transition", "saturated", "below"} == set(seen)
        assert seen[-1] == "below"
        times = [change[0] for change in result.regimes[pool]]
        assert np.all(np.diff(times) >= 10.0)


def test_without_its_weights_it_is_dynamo_to_the_last_bit():
    flat = {"temperatures": [0, 0, 0], "overlap_weights": [1, 1, 1], "enter": [3.0, 30.0]}
    watched = simulate(RAMP, Fleet(workers=2, engine=ENGINE), Policy("paper", flat), seed=4)
    plain = simulate(RAMP, Fleet(workers=2, engine=ENGINE), "dynamo", seed=4)
    assert watched.end_ms.tobytes() == plain.end_ms.tobytes()
    assert regimes(watched)
    assert regimes(plain) == []


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"enter": [10.0, 3.0]}, "enter"),
        ({"poll_s": 0.0}, "poll_s"),
        ({"baseline_s": -1.0}, "baseline_s"),
        ({"in_a_row": 0}, "in_a_row"),
        ({"smoothing": 1.5}, "smoothing"),
        ({"temperatures": [0.0, -1.0, 0.8]}, "router_temperature"),
        ({"theta": 1.0}, "theta"),
    ],
)
def test_bad_parameters_are_refused_by_name(parameters, word):
    with pytest.raises(ValueError, match=word):
        Router(block_size=16, policy="paper", **parameters)


def test_a_router_of_the_library_learns_from_prefill_done():
    router = Router(block_size=16, policy="paper", baseline_s=0.1, enter=[3.0, 30.0])
    for instance in (1, 2):
        router.add_worker((instance, 0))
    tokens = list(range(64))
    chosen = set()
    for i in range(400):
        at_s = i * 0.25
        chosen.add(router.route(tokens, request_id=i, now_s=at_s).worker)
        router.prefill_done(i, now_s=at_s + 5.0)
        router.release(i, now_s=at_s + 5.0)
    # Idle workers that hold nothing cost the same; with a temperature both are taken all the same.
    assert len(chosen) == 2
