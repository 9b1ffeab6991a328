"""Shadow fleets through Python: the same answers as a replay, and no word without proof."""

from __future__ import annotations

import numpy as np
import pytest

from wardrop.replay import Engine, Fleet, Shadows, simulate
from wardrop.replay.generate import generate
from wardrop.replay.workload import ReplayError, Workload

TRACE = "prefixes(requests=2400,per_s=10,groups=60,prefix=2048,suffix=400,output=60,spread=0)"
FLEET = Fleet(workers=4, engine=Engine(num_blocks=1_500))


def _feed(shadows: Shadows, workload: Workload, ttft_s: float | None) -> None:
    """Everything arrives; outcomes are known at once; time moves in steps of half a second."""
    next_look_s = 0.0
    for i in range(len(workload)):
        at_s = float(workload.arrival_ms[i]) / 1e3
        tokens = int(workload.input_tokens[i])
        ids = workload.blocks[int(workload.block_start[i]) : int(workload.block_start[i + 1])]
        whole = [int(block) + 1 for block in ids[: tokens // workload.block_size]]
        shadows.push(i, at_s, tokens, whole)
        shadows.outcome(i, ttft_s=ttft_s, output_tokens=int(workload.output_tokens[i]))
        if at_s >= next_look_s:
            shadows.advance(at_s)
            next_look_s = at_s + 0.5


def test_a_shadow_sees_what_a_replay_of_the_same_requests_sees() -> None:
    workload = generate(TRACE, seed=3)
    # One window over all whole ticks, none of them warming up.
    bounds = {"warm_ticks": 0, "window_ticks": 1_000, "batch_ticks": 1, "lag_s": 0}
    shadows = Shadows(FLEET, {"rr": "round_robin"}, cpu_share=1.0, **bounds)
    _feed(shadows, workload, None)
    shadows.advance(1e4)
    arm = shadows.report()["arms"][0]
    figures = simulate(workload, FLEET, "round_robin").summary()
    assert arm["completed"] == len(workload)
    assert arm["ttft_s"]["value"] == pytest.approx(figures["ttft_mean_s"], rel=1e-9)
    assert arm["e2e_s"]["value"] == pytest.approx(figures["e2e_mean_s"], rel=1e-9)
    assert arm["cached_share"]["value"] == pytest.approx(figures["reuse"], rel=1e-9)
    assert arm["ttft_s"]["low"] < figures["ttft_mean_s"] < arm["ttft_s"]["high"]


def test_a_better_policy_is_told_only_where_the_clock_is_right() -> None:
    workload = generate(TRACE, seed=4)
    arms = {"rr": "round_robin", "kv": "lmetric"}
    ttft_s = float(np.nanmean(simulate(workload, FLEET, "round_robin").ttft_ms)) / 1e3
    told: dict[float, str | None] = {}
    for factor in (1.0, 2.0):
        shadows = Shadows(FLEET, arms, warm_ticks=6, cpu_share=1.0)
        _feed(shadows, workload, ttft_s * factor)
        report = shadows.report()
        assert report["arms"][1]["ttft_ratio"]["high"] < 1.0
        assert report["trust"]["trusted"] is (factor == 1.0), report["trust"]
        told[factor] = shadows.suggest("ttft")
    assert told == {1.0: "kv", 2.0: None}


def test_bad_input_is_refused_with_its_field() -> None:
    with pytest.raises(ReplayError, match="closed loop"):
        Shadows(Fleet(workers=2, concurrency=4), {"a": "toll"})
    with pytest.raises(ValueError, match="no_such"):
        Shadows(FLEET, {"a": "no_such"})
    with pytest.raises(ValueError, match="cpu_share"):
        Shadows(FLEET, {"a": "toll"}, cpu_share=0)
    with pytest.raises(ValueError, match="goodput"):
        Shadows(FLEET, {"a": "toll"}).suggest("speed")
