"""The split game: equilibria, the variational one, the rule, brute force on seven workloads."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardrop.errors import InputError
from wardrop.games.errors import GameError
from wardrop.games.resource import (
    Attainment,
    Engine,
    FromCallable,
    PoolCurves,
    QueueingSource,
    Slo,
    builtin_timing,
    choose_split,
    concave_majorant,
    equilibria,
    every_split,
    ideal_reuse,
    integer_rule,
    pool_curves,
    read_timing,
    variational_split,
)
from wardrop.games.resource.pools import DecodePool, prefill_done
from wardrop.games.trace import Trace, Workload, generate_trace, read_trace
from wardrop.timing import TimingError

GENERATED = {
    "balanced": (Workload(24, 50, 3_000), 8, Slo(0.5, 0.016)),
    "long answers": (Workload(30, 50, 500, 800), 8, Slo(0.3, 0.015)),
    "bursts of long prompts": (Workload(8, 90, 6_000, 100, burst=3), 8, Slo(1.0, 0.02)),
    "overloaded": (Workload(60, 30, 3_000), 6, Slo(0.5, 0.016)),
    "heavy on both": (Workload(40, 30, 2_500, 600), 10, Slo(0.5, 0.014)),
}


def concave(steps: list[float]) -> np.ndarray:
    return np.concatenate([[0.0], np.cumsum(sorted(steps, reverse=True))])


curves = (
    st.integers(2, 9)
    .flatmap(lambda g: st.tuples(*[st.lists(st.floats(0, 1), min_size=g, max_size=g)] * 2))
    .map(lambda pair: PoolCurves(concave(pair[0]), concave(pair[1])))
)


@settings(max_examples=150, deadline=None)
@given(curves, st.data())
def test_the_integer_rule_is_exact_on_concave_curves_from_any_start(game, data) -> None:
    g = game.workers
    start = data.draw(st.integers(1, g - 1))
    found = integer_rule(game, start)
    values = [game.prefill[p] + game.decode[g - p] for p in range(1, g)]
    assert values[found - 1] == pytest.approx(max(values), abs=1e-9 * g)


@settings(max_examples=150, deadline=None)
@given(curves)
def test_marginal_gains_meet_at_the_variational_equilibrium(game) -> None:
    g, found = game.workers, variational_split(game)
    for x in {int(np.floor(found.prefill_workers)), int(np.ceil(found.prefill_workers))}:
        gain = game.prefill[x + 1] - game.prefill[x] if x + 1 <= g - 1 else 0.0
        loss = game.decode[g - x] - game.decode[g - x - 1] if x + 1 <= g - 1 else 0.0
        assert gain <= loss + 1e-9
        back = game.decode[g - x + 1] - game.decode[g - x] if x >= 2 else 0.0
        give = game.prefill[x] - game.prefill[x - 1] if x >= 2 else 0.0
        assert back <= give + 1e-9


def test_every_split_of_the_frontier_is_an_equilibrium_and_the_worst_is_far_from_the_best() -> None:
    rising = np.array([0.0, 0.1, 0.5, 0.9, 0.97, 0.99, 1.0])
    game = PoolCurves(rising, rising)
    assert equilibria(game) == [(1, 5), (2, 4), (3, 3), (4, 2), (5, 1)]
    value = {p: rising[p] + rising[6 - p] for p in range(1, 6)}
    assert value[3] > 1.6 * value[1]
    assert variational_split(game).prefill_workers == 3.0


def test_saturated_pools_have_equilibria_off_the_frontier_too() -> None:
    flat = PoolCurves(np.array([0, 1.0, 1.0, 1.0, 1.0]), np.array([0, 1.0, 1.0, 1.0, 1.0]))
    assert (1, 1) in equilibria(flat)


def test_the_rule_can_stop_short_on_an_s_shaped_curve() -> None:
    steep = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    gentle = np.array([0.0, 0.1, 0.2, 0.25, 0.28, 0.3, 0.31])
    game = PoolCurves(steep, gentle)
    assert integer_rule(game, 1) == 1
    assert integer_rule(game, 4) == 4
    assert round(variational_split(game).prefill_workers) == 4


def test_the_majorant_is_concave_above_and_touches() -> None:
    curve = np.array([0.0, 0.01, 0.02, 0.7, 0.72, 0.9, 0.9])
    lifted = concave_majorant(curve)
    assert np.all(lifted >= curve - 1e-12)
    assert np.all(np.diff(lifted[1:], 2) <= 1e-12)
    assert lifted[1] == curve[1]
    assert lifted[-1] == curve[-1]


def within_two_percent(source: QueueingSource, workers: int) -> None:
    choice, brute = choose_split(source, workers), every_split(source, workers)
    best = max(attained.goodput_rps for attained in brute.values())
    assert choice.prefill_workers + choice.decode_workers == workers
    assert choice.attainment == brute[choice.prefill_workers]
    assert choice.attainment.goodput_rps >= 0.98 * best


@pytest.mark.parametrize("name", GENERATED)
def test_the_chosen_split_is_within_two_percent_of_brute_force(name: str) -> None:
    workload, workers, slo = GENERATED[name]
    source = QueueingSource(generate_trace(workload, 1), Engine(builtin_timing()), slo)
    within_two_percent(source, workers)


@pytest.mark.parametrize(
    ("file", "rows", "speed", "workers", "reuse", "slo"),
    [
        ("mooncake_conversation_0_30min.jsonl.gz", 1_500, 3.0, 10, 0.35, Slo(2.0, 0.02)),
        ("claude_code_dev48.jsonl.zst", 700, 2.0, 8, 0.9, Slo(2.0, 0.02)),
    ],
)
def test_the_chosen_split_is_within_two_percent_on_real_traces(
    shared: Path, file: str, rows: int, speed: float, workers: int, reuse: float, slo: Slo
) -> None:
    trace = read_trace(shared / "traces" / file, limit=rows).faster(speed)
    timing = read_timing(shared / "timing" / "llama70b_tp4_b200.npz")
    within_two_percent(QueueingSource(trace, Engine(timing), slo, reuse), workers)


def test_any_callable_is_a_source() -> None:
    def evaluate(p: int, d: int) -> Attainment:
        share = min(1.0, p / 5) * min(1.0, d / 3)
        return Attainment(min(1.0, p / 5), min(1.0, d / 3), share, share)

    source = FromCallable(evaluate)
    choice = choose_split(source, 8)
    assert (choice.prefill_workers, choice.decode_workers) == (5, 3)
    assert source.evaluations <= 14 + 7


def test_one_idle_worker_serves_at_the_speed_of_its_table() -> None:
    timing = builtin_timing()
    arrival, tokens = np.array([0.0, 10.0]), np.array([1_024, 8_192])
    done = prefill_done(arrival, tokens, 1, timing, 8_192)
    np.testing.assert_allclose(done - arrival, [0.041, 0.274])
    pool = DecodePool(1, timing, 1e6, 8)
    finished = pool.finish_times(np.array([1.0]), np.array([1_000]), np.array([101]))
    assert finished[0] - 1.0 == pytest.approx(100 * 0.0092, rel=1e-3)


def test_a_prefill_queue_is_first_come_first_served_and_batches_what_fits() -> None:
    timing, arrival = builtin_timing(), np.array([0.0, 0.001, 0.002, 0.003])
    tokens = np.array([8_192, 1_000, 1_000, 7_000])
    done = prefill_done(arrival, tokens, 1, timing, 8_192)
    assert done[0] == pytest.approx(0.274)
    assert done[1] == done[2] == pytest.approx(0.274 + timing.prefill_seconds(2_000))
    assert done[3] > done[2]
    assert np.all(np.diff(prefill_done(arrival, tokens, 2, timing, 8_192)) >= -0.3)


def test_decode_conserves_tokens_against_a_step_by_step_reference() -> None:
    timing = builtin_timing()
    generator = np.random.default_rng(0)
    first = np.sort(generator.uniform(0, 3, 30))
    inputs, outputs = generator.integers(100, 5_000, 30), generator.integers(2, 200, 30)
    found = DecodePool(1, timing, 1e9, 64).finish_times(first, inputs, outputs)
    clock, left, kv, slow = 0.0, {}, {}, np.zeros(30)
    waiting = list(range(30))
    while waiting or left:
        if not left:
            clock = max(clock, first[waiting[0]])
        while waiting and first[waiting[0]] <= clock:
            i = waiting.pop(0)
            left[i], kv[i] = int(outputs[i]) - 1, float(inputs[i])
        clock += timing.step_seconds(sum(kv.values()), sum(kv.values()) / len(kv))
        for i in list(left):
            left[i] -= 1
            kv[i] += 1
            if left[i] == 0:
                slow[i] = clock
                del left[i], kv[i]
    np.testing.assert_allclose(found - first, slow - first, rtol=0.03, atol=0.02)


def test_more_workers_never_lower_the_attainment_of_their_own_pool() -> None:
    workload, workers, slo = GENERATED["balanced"]
    game = pool_curves(
        QueueingSource(generate_trace(workload, 2), Engine(builtin_timing()), slo), workers
    )
    assert np.all(np.diff(game.prefill) >= -1e-12)
    assert np.all(np.diff(game.decode) >= -0.01)


def test_the_evaluator_is_deterministic_and_bounded_by_its_ceiling() -> None:
    workload, _, slo = GENERATED["balanced"]
    trace = generate_trace(workload, 3)
    a, b = (QueueingSource(trace, Engine(builtin_timing()), slo) for _ in range(2))
    assert a.attainment(3, 3) == b.attainment(3, 3)
    assert a.attainment(40, 3).ttft <= a.ceiling
    split = a.attainment(3, 3)
    assert split.ttft + split.itl - 1 - 1e-12 <= split.both <= min(split.ttft, split.itl)


def test_ideal_reuse_counts_the_leading_blocks_seen_before() -> None:
    trace = Trace(
        "t",
        np.zeros(3),
        np.array([100, 150, 100]),
        np.array([1, 1, 1]),
        ((1, 2), (1, 2, 3), (9, 2)),
        50,
    )
    assert ideal_reuse(trace).tolist() == [0.0, 100.0, 0.0]


def test_wrong_inputs_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected both > 0"):
        Slo(0.0, 0.1)
    with pytest.raises(TimingError, match="no timing table"):
        read_timing(tmp_path / "none.npz")
    np.savez(tmp_path / "half.npz", prefill_isl=np.ones(2))
    with pytest.raises(TimingError, match="lacks"):
        read_timing(tmp_path / "half.npz")
    with pytest.raises(GameError, match="at least 2"):
        choose_split(FromCallable(lambda p, d: Attainment(1, 1, 1, 1)), 1)
