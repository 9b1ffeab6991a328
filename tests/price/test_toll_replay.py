"""The toll and the queue in the simulated fleet: worth having when busy, harmless when idle."""

import numpy as np
import pytest

from wardrop.calls import CallError
from wardrop.replay import Engine, Fleet, Policy, Workload, affine, simulate
from wardrop.replay.generate import prefixes

TIMING = affine(
    prefill_base_ms=12.0,
    prefill_per_token_ms=0.03,
    decode_base_ms=8.0,
    decode_per_kv_token_ms=1e-5,
    decode_per_sequence_ms=0.03,
)


def fleet(rate: float, **fields: object) -> Fleet:
    engine = Engine(timing=TIMING, num_blocks=4096)
    return Fleet(workers=4, engine=engine, rate=rate, **fields)  # type: ignore[arg-type]


def workload() -> Workload:
    return prefixes(1500, per_s=20.0, suffix=3000, spread=1.0, seed=1)


def figures(policy: str, rate: float, **fields: object) -> dict[str, float]:
    result = simulate(workload(), fleet(rate, **fields), Policy.parse(policy), seed=3)
    assert result.complete.all()
    return result.summary()


def test_queue_is_parsed_labelled_and_refused_when_misspelt() -> None:
    policy = Policy.parse("toll(itl=1,ttft=0)+queue(kappa=30)")
    assert policy.queue == {"kappa": 30}
    assert policy.label == "toll(itl=1,ttft=0)+queue(kappa=30)"
    assert Policy.parse("dynamo+queue").queue == {}
    with pytest.raises(CallError, match=r"expected each of queue"):
        Policy.parse("toll+cue")
    with pytest.raises(ValueError, match="kapa"):
        simulate(workload(), fleet(1), Policy.parse("toll+queue(kapa=1)"))
    with pytest.raises(ValueError, match="kappa"):
        simulate(workload(), fleet(1), Policy.parse("toll+queue(kappa=-1)"))


def test_queue_costs_nothing_when_the_fleet_is_idle() -> None:
    alone, queued = figures("toll", 0.1), figures("toll+queue", 0.1)
    assert queued["ttft_mean_s"] == pytest.approx(alone["ttft_mean_s"], rel=0.01)
    assert queued["e2e_mean_s"] == pytest.approx(alone["e2e_mean_s"], rel=0.01)


def test_queue_and_toll_beat_the_baseline_past_the_knee() -> None:
    rate = 1.4
    base, toll = figures("dynamo", rate), figures("toll", rate)
    queued = figures("toll+queue", rate)
    assert toll["ttft_mean_s"] < 1.0 * base["ttft_mean_s"]
    assert queued["ttft_mean_s"] < 0.8 * base["ttft_mean_s"]
    assert queued["e2e_mean_s"] < base["e2e_mean_s"]


def test_split_fleet_binds_late_on_both_legs() -> None:
    engine = Engine(timing=TIMING, num_blocks=4096)
    result = simulate(
        workload(), Fleet.split(2, 2, engine=engine, rate=0.8), Policy.parse("toll+queue")
    )
    assert result.complete.all()
    assert set(result.worker.tolist()) == {0, 1}
    assert set(result.decode_worker.tolist()) == {2, 3}


def test_same_seed_same_result_with_a_queue() -> None:
    policy = Policy.parse("toll+queue")
    first, second = (simulate(workload(), fleet(1.2), policy, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.first_token_ms, second.first_token_ms)
    np.testing.assert_array_equal(first.worker, second.worker)


def test_unknown_half_speed_workers_are_learned_in_the_fleet() -> None:
    speeds = (1.0, 1.0, 0.5, 0.5)
    base, toll = figures("least_loaded", 0.9, speeds=speeds), figures("toll", 0.9, speeds=speeds)
    assert toll["ttft_mean_s"] < 0.8 * base["ttft_mean_s"]
