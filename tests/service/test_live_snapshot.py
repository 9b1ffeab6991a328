"""Percentiles, history and departed workers of the live page, without a browser."""

from __future__ import annotations

import json

import msgspec
import pytest

from wardrop._core import Gateway
from wardrop.service.live.observation import (
    DECODER,
    Anarchy,
    BoundFigure,
    Curve,
    CurveEvidence,
    Model,
    Observation,
    Pool,
    PriceOfAnarchy,
    Worker,
)
from wardrop.service.live.percentiles import PercentileWindow
from wardrop.service.live.snapshot import HISTORY_POINTS, MAX_MODELS, Builder, Viewers


def worker(instance: int, active_requests: int = 0) -> Worker:
    load, sums = (0, 0, active_requests, 0, None), (1.0, 0, 0, 0, 0)
    return Worker(str(instance), 0, True, None, "synced", "exact", 1.0, *load, *sums, curve=None)


def model(name: str, *pools: Pool, ttft_counts=()) -> Model:
    return Model(name, 4, list(ttft_counts), [], None, list(pools))


def build(builder: Builder, at_s: float, *models: Model, **control: float):
    return builder.build(Observation(at_s, list(models)), at_s, control, Viewers())


def test_percentiles_are_those_of_the_window_only():
    window = PercentileWindow(10.0)
    assert window.take(0.0, [(0.1, 5)]) is None, "latencies before the first look are unknown"
    found = window.take(1.0, [(0.1, 5), (0.2, 90), (0.5, 9), (2.0, 1)])
    assert found is not None
    assert (found.count, found.p50_s, found.p95_s, found.p99_s) == (100, 0.2, 0.5, 0.5)
    assert window.take(5.0, [(0.1, 5), (0.2, 90), (0.5, 9), (2.0, 1)]) is not None
    found = window.take(12.0, [(0.1, 6), (0.2, 90), (0.5, 9), (2.0, 1)])
    assert found is not None
    assert (found.count, found.p99_s) == (1, 0.1), "older latencies have left the window"
    assert window.take(30.0, [(0.1, 6), (0.2, 90), (0.5, 9), (2.0, 1)]) is None


def test_counts_that_fell_begin_a_new_window():
    window = PercentileWindow(10.0)
    window.take(0.0, [(0.1, 50)])
    found = window.take(1.0, [(0.3, 2)])
    assert found is not None
    assert (found.count, found.p50_s) == (2, 0.3)


def test_history_keeps_the_last_points_in_columns_of_one_length():
    builder = Builder()
    anarchy = Anarchy(1.25, None, None, 1, 0.1, 0.2, 0.3)
    for second in range(HISTORY_POINTS + 5):
        known = anarchy if second % 2 else None
        pool = Pool("aggregated", 3, 0.5, known, [worker(1, 2), worker(2, 5)])
        build(builder, float(second), model("m", pool), regime=second % 3, knee_share=0.5)
    columns = builder.history().models["m"]
    assert {len(values) for values in columns.values()} == {HISTORY_POINTS}
    assert columns["at_s"][0] == 5.0
    assert columns["running"][-1] == 7
    assert columns["waiting"][-1] == 3
    assert set(columns["poa_aggregated"]) == {None, 1.25}
    assert set(columns["regime"]) == {0, 1, 2}


def test_both_figures_of_the_price_of_anarchy_are_charted():
    figure = BoundFigure(1.5, 1.4, 1.6, 300)
    curves = CurveEvidence(100, 100, 0.1, 0.2)
    price = PriceOfAnarchy(None, figure, None, None, 9, 2.0, curves, 0, 0, 50, 0.01)
    seen = msgspec.structs.replace(model("m"), price_of_anarchy=price)
    [shown] = build(Builder(), 0.0, seen).models
    assert shown.price_of_anarchy == price
    assert [shown.point[f"bound_e2e_{end}"] for end in ("value", "low", "high")] == [1.5, 1.4, 1.6]
    assert shown.point["bound_ttft_value"] is None


def test_request_of_a_split_fleet_counts_once():
    pools = [
        Pool("prefill", 0, 0, None, [worker(1, 4)]),
        Pool("decode", 0, 0, None, [worker(2, 6)]),
    ]
    assert build(Builder(), 0.0, model("m", *pools)).models[0].point["running"] == 6


def problems(builder: Builder, at_s: float, one: Model, **control: float) -> list[str]:
    return [problem.text for problem in build(builder, at_s, one, **control).models[0].problems]


def test_worker_that_left_is_named_until_it_returns_or_five_minutes_pass():
    builder = Builder()
    both = model("m", Pool("aggregated", 0, 0, None, [worker(1), worker(2)]))
    one = model("m", Pool("aggregated", 0, 0, None, [worker(1)]))
    assert problems(builder, 0.0, both) == []
    (gone,) = problems(builder, 1.0, one)
    assert gone.startswith("1 worker left the fleet in the last 5 minutes: 2.")
    assert len(problems(builder, 300.0, one)) == 1
    assert problems(builder, 302.0, one) == []
    problems(builder, 303.0, both)
    assert len(problems(builder, 304.0, one)) == 1
    assert problems(builder, 305.0, both) == []


@pytest.mark.parametrize(
    ("changes", "role", "level", "text"),
    [
        ({"available": False, "fault": "silent"}, "aggregated", "failure", "unavailable: 1."),
        ({"feed_state": "suspect"}, "aggregated", "warning", "with suspect blocks: 1."),
        (
            {"trust_mode": "degraded", "trust_score": 0.5},
            "aggregated",
            "warning",
            "an index that differs from the engine: 1.",
        ),
        ({"event_age_s": None, "audited_requests": 1}, "prefill", "warning", "sent no KV event"),
    ],
)
def test_problem_of_a_worker_is_named(changes, role, level, text):
    ill = msgspec.structs.replace(worker(1), **changes)
    snapshot = build(Builder(), 0.0, model("m", Pool(role, 0, 0, None, [ill, worker(2)])))
    (found,) = snapshot.models[0].problems
    assert (found.level, text in found.text) == (level, True), found


def curves(*prefill_s: float, samples: int = 20) -> Pool:
    """A pool whose workers take these seconds to prefill 2,048 tokens."""
    workers = [
        msgspec.structs.replace(worker(at), curve=Curve([0.0, s, s, s, s], 0.01, samples, samples))
        for at, s in enumerate(prefill_s)
    ]
    return Pool("aggregated", 0, 0, None, workers)


def test_worker_far_slower_than_the_others_is_named():
    (slow,) = problems(Builder(), 0.0, model("m", curves(0.1, 0.11, 0.25, 0.09)))
    assert slow.startswith("1 worker slower than 2 times the median of the others: 2.")
    assert problems(Builder(), 0.0, model("m", curves(0.1, 0.11, 0.19, 0.09))) == []
    assert problems(Builder(), 0.0, model("m", curves(0.1, 0.5))) == [], "no majority"
    guessed = curves(0.1, 0.11, 0.5, samples=19)
    assert problems(Builder(), 0.0, model("m", guessed)) == [], "too few samples"


def test_healthy_and_idle_workers_are_no_problem():
    fine = {"audited_requests": 20, "predicted_cached_tokens": 100, "reported_cached_tokens": 80}
    quiet = msgspec.structs.replace(worker(1), **fine)
    deaf_decoder = msgspec.structs.replace(worker(2), event_age_s=None, audited_requests=9)
    pools = [Pool("prefill", 0, 0, None, [quiet]), Pool("decode", 0, 0, None, [deaf_decoder])]
    assert problems(Builder(), 0.0, model("m", *pools), regime=1) == []


def test_misfit_of_the_price_is_named_with_its_pool():
    prefill = Pool("prefill", 0, 0, None, [worker(1)], misfit="first_tokens_unpredicted")
    decode = Pool("decode", 0, 0, None, [worker(2)])
    (found,) = problems(Builder(), 0.0, model("m", prefill, decode))
    assert found.startswith("The price does not fit in the prefill pool: first tokens come at")
    alone = Pool("aggregated", 0, 0, None, [worker(1)], misfit="first_tokens_unreported")
    (found,) = problems(Builder(), 0.0, model("m", alone))
    assert found.startswith("The price does not fit: requests end and their first tokens are not")


def test_empty_and_saturated_fleets_are_problems():
    texts = problems(Builder(), 0.0, model("m"), regime=2)
    assert texts[0].startswith("No worker is known")
    assert texts[1].startswith("The fleet is saturated")


def test_models_beyond_the_limit_are_counted_and_forgotten_models_make_room():
    builder = Builder()
    many = [model(f"m{number}") for number in range(MAX_MODELS + 3)]
    snapshot = build(builder, 0.0, *many)
    assert snapshot.models_without_history == 3
    assert len(snapshot.models) == MAX_MODELS + 3
    assert build(builder, 1.0, *many[3:]).models_without_history == 0
    assert set(builder.history().models) == {one.name for one in many[3:]}


@pytest.mark.parametrize("regime", [None, 0, 1, 2])
def test_regime_has_its_name(regime):
    control = {} if regime is None else {"regime": regime}
    names = {None: None, 0: "below", 1: "transition", 2: "saturated"}
    assert build(Builder(), 0.0, **control).regime == names[regime]


def test_observation_of_a_gateway_has_every_field_of_the_types():
    native = Gateway('{"listen": "127.0.0.1:0"}')
    native.upsert_model(json.dumps({"name": "m", "block_size": 4}))
    worker = {"model": "m", "role": "aggregated", "instance": 2**64 - 1, "total_kv_blocks": 64}
    native.upsert_worker(json.dumps(worker))
    observation = DECODER.decode(native.observation())
    (found,) = observation.models[0].pools[0].workers
    assert (found.instance, found.total_kv_blocks) == (str(2**64 - 1), 64)
    assert found.curve is not None
    assert found.curve.prefill_s == sorted(found.curve.prefill_s)
    raw = json.loads(native.observation())["models"][0]["pools"][0]["workers"][0]
    assert set(raw) == set(msgspec.structs.asdict(found)), "no field is dropped without notice"
    native.stop()
