"""A simulation: equal bytes for equal seeds, sane figures, errors that name their cause."""

import numpy as np
import pytest

from wardrop.calls import CallError
from wardrop.replay import Engine, Fault, Fleet, Policy, Slo, Tier, affine, load_timing
from wardrop.replay import simulate as run
from wardrop.replay.generate import generate
from wardrop.replay.run import COMPLETE
from wardrop.timing import TimingError

WORKLOAD = generate("prefixes(requests=400,per_s=30)", 1)


def test_equal_seeds_give_equal_bytes_and_other_seeds_do_not():
    one, same, other = (run(WORKLOAD, Fleet(workers=4), "dynamo", seed=s) for s in (5, 5, 6))
    for name in ("end_ms", "worker", "cached_tokens", "gap_counts"):
        assert getattr(one, name).tobytes() == getattr(same, name).tobytes()
    assert one.worker.tobytes() != other.worker.tobytes()


def test_every_request_completes_and_figures_agree_with_the_rows():
    result = run(WORKLOAD, Fleet(workers=4), "round_robin")
    figures = result.summary(Slo(1e9, 1e9))
    assert figures["completed"] == len(WORKLOAD)
    assert figures["attainment"] == 1.0
    assert figures["ttft_mean_s"] == pytest.approx(float(np.mean(result.ttft_ms)) / 1e3)
    gaps = float((result.output_tokens.astype(float) - 1).sum())
    assert float(result.gap_counts.sum()) == gaps
    assert result.totals["gap_sum_ms"] == pytest.approx(
        float((result.end_ms - result.first_token_ms).sum()), rel=1e-9
    )
    assert result.totals["prefill_tokens"] == float(
        (result.input_tokens - result.cached_tokens).sum()
    )


def test_affinity_finds_more_of_the_cache_than_taking_turns():
    turns = run(WORKLOAD, Fleet(workers=8), "round_robin").summary()["reuse"]
    affinity = run(WORKLOAD, Fleet(workers=8), "dynamo").summary()["reuse"]
    assert affinity > turns


def test_a_higher_load_cannot_be_faster():
    slow = run(WORKLOAD, Fleet(workers=2), "round_robin").summary()["ttft_mean_s"]
    fast = run(WORKLOAD, Fleet(workers=2, rate=4.0), "round_robin").summary()["ttft_mean_s"]
    assert fast > slow


def test_a_split_fleet_names_both_workers():
    result = run(WORKLOAD, Fleet.split(2, 3), "least_loaded")
    assert (result.end == COMPLETE).all()
    assert set(result.worker.tolist()) == {0, 1}
    assert set(result.decode_worker.tolist()) == {2, 3, 4}
    assert result.totals["transfer_bytes"] > 0


def test_faults_tiers_and_late_feeds_are_accepted_together():
    fleet = Fleet(
        workers=3,
        engine=Engine(num_blocks=256, tiers=(Tier(2000, 1e10), Tier(9000, 1e9, promote_at=2))),
        faults=(
            Fault(1000, 0, "crash", 500),
            Fault(2000, 1, "hang", 300),
            Fault(3000, 2, "speed", 0.5),
            Fault(4000, 0, "join"),
        ),
        feed_delay_ms=5,
        feed_loss=0.05,
        sample_ms=100,
    )
    result = run(WORKLOAD, fleet, "dynamo")
    assert (result.end == COMPLETE).all()
    assert result.totals["events_lost"] > 0
    assert result.totals["onboarded_tokens"] > 0
    assert result.retries.sum() > 0
    assert result.running.shape == (result.sample_ms.size, 3)


def test_a_closed_loop_holds_its_number_in_flight():
    workload = generate("paper(requests=300,output=16)", 0)
    result = run(workload, Fleet(workers=2, concurrency=6), "least_loaded")
    starts = np.sort(result.arrival_ms)
    in_flight = [
        int(((result.arrival_ms <= at) & (result.end_ms > at)).sum()) for at in starts[6:-6]
    ]
    assert max(in_flight) <= 6


def test_a_policy_is_read_with_its_parameters():
    policy = Policy.parse("dynamo(router_temperature=0.5,prefill_load_scale=2)")
    assert policy.parameters == {"router_temperature": 0.5, "prefill_load_scale": 2}
    assert Policy.parse(policy.label) == policy
    with pytest.raises(CallError, match="expected NAME"):
        Policy.parse("dynamo(router_temperature)")


@pytest.mark.parametrize(
    ("fleet", "policy", "names"),
    [
        (Fleet(workers=2), "nothing", "nothing"),
        (Fleet(workers=2, rate=0.0), "dynamo", "rate"),
        (Fleet(workers=2, engine=Engine(block_size=48)), "dynamo", "block_size"),
        (Fleet(workers=2, faults=(Fault(0, 9, "join"),)), "dynamo", "worker"),
        (Fleet(workers=2, faults=(Fault(0, 0, "burn"),)), "dynamo", "burn"),
        (Fleet(workers=2, speeds=(0.0, 1.0)), "dynamo", "speeds"),
    ],
)
def test_bad_input_is_refused_by_name(fleet, policy, names):
    with pytest.raises(ValueError, match=names):
        run(WORKLOAD, fleet, policy)


def test_a_timing_table_is_read_and_a_broken_one_refused(tmp_path):
    arrays = {
        "prefill_isl": np.asarray([0.0, 1000.0]),
        "prefill_ttft_ms": np.asarray([0.0, 100.0]),
        "decode_active_kv_tokens": np.asarray([0.0, 1e6]),
        "decode_context_length": np.asarray([0.0, 1e5]),
        "decode_itl": np.full((2, 2), 10.0),
    }
    np.savez(tmp_path / "good.npz", **arrays)
    table = load_timing(tmp_path / "good.npz")
    same = affine(prefill_per_token_ms=0.1, decode_base_ms=10.0)
    rows = [
        run(WORKLOAD, Fleet(workers=4, engine=Engine(timing=t)), "round_robin")
        for t in (table, same)
    ]
    assert np.allclose(rows[0].end_ms, rows[1].end_ms)
    np.savez(tmp_path / "bad.npz", **{k: v for k, v in arrays.items() if k != "decode_itl"})
    with pytest.raises(TimingError, match="decode_itl"):
        load_timing(tmp_path / "bad.npz")
    with pytest.raises(TimingError, match="no timing table"):
        load_timing(tmp_path / "none.npz")


def test_a_frame_has_a_row_per_request():
    pandas = pytest.importorskip("pandas")
    frame = run(WORKLOAD, Fleet(workers=2), "round_robin").frame()
    assert isinstance(frame, pandas.DataFrame)
    assert len(frame) == len(WORKLOAD)
