"""Samples of the controller, from native counts and from a metrics page."""

import pytest

from wardrop.control.telemetry import PageTelemetry, Telemetry


def native_sample(now_s: float, booked: int = 0, work_s: float = 0.0, **changes):
    pool = {
        "model": "m",
        "role": "aggregated",
        "routable": 2,
        "booked": booked,
        "booked_prefill_s": work_s,
        "backlog_s": 0.0,
        "in_flight": 0,
        "waiting": 0,
        "waiting_prefill_s": 0.0,
        "engine_queued_s": 0.0,
        "step_s": 0.0,
        "engine_age_s": 0.1,
    }
    outcomes = {
        "arrivals": 0,
        "ttft_s": [],
        "itl_sum_s": 0.0,
        "itl_answers": 0,
        "e2e_sum_s": 0.0,
        "e2e_answers": 0,
    }
    for name, value in changes.items():
        (pool if name in pool else outcomes)[name] = value
    return {"now_s": now_s, "outcomes": outcomes, "pools": [pool]}


def test_utilisation_is_work_that_arrived_per_worker_second() -> None:
    telemetry = Telemetry()
    assert telemetry.take(native_sample(0.0)) is None
    sample = telemetry.take(native_sample(1.0, 10, 1.0, arrivals=10, ttft_s=[0.1] * 9 + [0.7]))
    assert sample is not None
    assert sample.utilisation == pytest.approx(0.5)
    assert (sample.requests, sample.arrivals_per_s, sample.ttft_p99_s) == (10, 10.0, 0.7)
    assert 0.45 < sample.knee_share < 0.65
    assert sample.alone_s == pytest.approx(0.1)


def test_surge_shows_at_once_though_nothing_of_it_was_booked() -> None:
    telemetry = Telemetry()
    telemetry.take(native_sample(0.0))
    for i in range(1, 9):
        telemetry.take(native_sample(i * 0.25, 5 * i, 0.5 * i, arrivals=5))
    sample = telemetry.take(
        native_sample(2.25, 40, 4.0, arrivals=100, waiting=95, waiting_prefill_s=9.5, in_flight=5)
    )
    assert sample is not None
    assert sample.backlog_s == pytest.approx(4.75)
    assert sample.knee_share > 2.0
    assert sample.age_s == 0.0


def test_bounds_of_the_load_follow_from_the_number_of_arrivals() -> None:
    telemetry = Telemetry()
    telemetry.take(native_sample(0.0))
    wide, narrow = (
        [telemetry.take(native_sample(i * 0.25, 5 * i, 0.5 * i, arrivals=5)) for i in span][-1]
        for span in (range(1, 3), range(3, 40))
    )
    assert wide is not None
    assert narrow is not None
    for sample in (wide, narrow):
        assert sample.knee_least < sample.knee_share
        assert sample.knee_most == pytest.approx(sample.knee_share)
    assert narrow.knee_share - narrow.knee_least < 0.5 * (wide.knee_share - wide.knee_least)


def test_load_that_fell_is_certain_within_a_second_or_two() -> None:
    telemetry = Telemetry()
    telemetry.take(native_sample(0.0))
    for i in range(1, 40):
        telemetry.take(native_sample(i * 0.25, 20 * i, 0.5 * i, arrivals=20))
    for i in range(40, 46):
        sample = telemetry.take(
            native_sample(i * 0.25, 780 + 2 * (i - 39), 19.5 + 0.05 * (i - 39), arrivals=2)
        )
    assert sample is not None
    assert 0.0 < sample.knee_most < 0.6


def test_wild_curve_is_no_load() -> None:
    telemetry = Telemetry()
    telemetry.take(native_sample(0.0))
    calm = {"arrivals": 5, "itl_sum_s": 0.05, "itl_answers": 5, "e2e_answers": 5}
    for i in range(1, 20):
        sample = telemetry.take(native_sample(i * 0.25, 5 * i, 0.25 * i, **calm, step_s=0.01))
    wild = telemetry.take(native_sample(5.0, 100, 5.0, **calm, step_s=45.0))
    assert sample is not None
    assert wild is not None
    assert wild.knee_share < 1.5 * sample.knee_share


def test_engines_own_queue_counts_where_the_router_does_not_know_it_unless_stale() -> None:
    telemetry = Telemetry()
    telemetry.take(native_sample(0.0))
    sample = telemetry.take(native_sample(1.0, engine_queued_s=6.0, in_flight=3))
    assert sample is not None
    assert sample.backlog_s == pytest.approx(3.0)
    stale = telemetry.take(native_sample(2.0, engine_queued_s=6.0, engine_age_s=30.0, in_flight=3))
    assert stale is not None
    assert stale.backlog_s == 0.0


def test_a_sample_ages_while_requests_in_flight_have_no_outcomes() -> None:
    telemetry = Telemetry()
    telemetry.take(native_sample(0.0))
    telemetry.take(native_sample(1.0, ttft_s=[0.1], arrivals=1))
    sample = telemetry.take(native_sample(9.0, in_flight=4))
    assert sample is not None
    assert sample.age_s == pytest.approx(8.0)


PAGE = """# TYPE dynamo_frontend_time_to_first_token_seconds histogram
dynamo_frontend_time_to_first_token_seconds_bucket{{model="m",le="0.1"}} {fast}
dynamo_frontend_time_to_first_token_seconds_bucket{{model="m",le="1"}} {all}
dynamo_frontend_time_to_first_token_seconds_bucket{{model="m",le="+Inf"}} {all}
dynamo_frontend_time_to_first_token_seconds_sum{{model="m"}} {sum}
dynamo_frontend_time_to_first_token_seconds_count{{model="m"}} {all}
garbage {{
"""


def test_metrics_page_gives_the_same_kind_of_sample_from_differences() -> None:
    page = PageTelemetry()
    assert page.take(0.0, PAGE.format(fast=100, all=100, sum=5.0)) is None
    sample = page.take(5.0, PAGE.format(fast=120, all=150, sum=20.0))
    assert sample is not None
    assert (sample.requests, sample.ttft_p99_s, sample.arrivals_per_s) == (50, 1.0, 10.0)
    assert sample.ttft_mean_s == pytest.approx(0.3)
    assert page.take(10.0, PAGE.format(fast=120, all=150, sum=20.0)) is None
