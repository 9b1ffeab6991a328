"""Figures and curves, from columns that were worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from wardrop.demo.drive import Driven
from wardrop.demo.figures import BIN_LEAST, curves, figures

COLUMNS: dict[str, Any] = {
    "elapsed_s": 4.0,
    "outcome": ["ok", "ok", "ok", "refused", "unsent", "ok"],
    "sent_s": [0.0, 1.0, 2.0, 0.5, None, 0.1],
    "first_token_s": [0.1, 1.2, 2.3, None, None, None],
    "end_s": [2.0, 2.0, 4.0, 0.6, None, 0.2],
    "chunks": [3, 3, 3, 0, 0, 0],
    "prompt_tokens": [100, 200, 100, None, None, 900],
    "completion_tokens": [3, 3, 3, None, None, 0],
    "cached_tokens": [0, 100, 40, None, None, 0],
    "worker_id": ["11", "12", "11", None, None, "12"],
    "prefill_worker_id": ["21", "21", "21", None, None, "21"],
    "itl_p50_s": 0.01,
    "itl_p95_s": 0.02,
    "lateness_p99_s": 0.001,
    "loop_lag_p99_s": None,
}
DRIVEN = Driven(COLUMNS, "no", router_cpu_s=(0.02, 0.01), driver_cpu_s=0.4)
WORKERS = {"aggregated": [11, 12]}


def test_figures_count_what_was_answered_and_what_was_not() -> None:
    got = figures(DRIVEN, WORKERS)
    # An answer without one token is an error, and its prompt counts nowhere.
    assert (got.requests, got.errors) == (5, 2)
    assert got.outcomes == {"ok": 3, "refused": 1, "unsent": 1, "empty": 1}
    assert got.ttft_p50_ms == pytest.approx(200)
    assert got.ttft_mean_ms == pytest.approx(200)
    assert got.cached_share == pytest.approx(140 / 400)
    assert got.router_cpu_us == pytest.approx(10_000)
    assert got.gateway_cpu_us == pytest.approx(10_000 / 3)
    assert got.driver_cpu_share == pytest.approx(0.1)
    assert (got.itl_p50_ms, got.loop_lag_p99_ms) == (10, None)


def test_spread_is_request_seconds_of_the_busiest_over_the_mean() -> None:
    # worker 11: 2 + 2 s, worker 12: 1 s
    assert figures(DRIVEN, WORKERS).spread["aggregated"] == pytest.approx(4 / 2.5)


def test_an_idle_worker_counts_in_the_spread() -> None:
    spread = figures(DRIVEN, {"aggregated": [11, 12, 13, 14]}).spread["aggregated"]
    assert spread == pytest.approx(4 / 1.25)


def test_a_split_counts_prefill_up_to_the_first_token_and_decode_after() -> None:
    spread = figures(DRIVEN, {"prefill": [21, 22], "decode": [11, 12]}).spread
    assert spread["prefill"] == pytest.approx(2)
    assert spread["decode"] == pytest.approx(3.6 / 2.2)  # (1.9 + 1.7) and 0.8 s


def test_a_split_reports_no_cached_share_rather_than_a_false_zero() -> None:
    split = {"prefill": [21, 22], "decode": [11, 12]}
    assert figures(DRIVEN, split).cached_share is None
    assert np.isnan(curves(DRIVEN, split).cached_share).all()


def test_the_load_map_holds_every_request_second_once() -> None:
    load = curves(DRIVEN, WORKERS)
    width_s = np.diff(load.load_time_s)
    assert load.load.shape == (2, len(width_s))
    assert (load.load * width_s).sum(axis=1) == pytest.approx([4, 1])
    assert load.load[0, 0] == pytest.approx(1)
    assert load.load[1, 0] == 0


def test_bins_with_too_few_requests_show_nothing() -> None:
    assert len(COLUMNS["outcome"]) < BIN_LEAST
    got = curves(DRIVEN, WORKERS)
    assert np.isnan(got.ttft_p50_ms).all()
    assert np.isnan(got.cached_share).all()


def test_no_answer_at_all_gives_no_figure_and_no_failure() -> None:
    columns = {**COLUMNS, "outcome": ["broken"] * 6, "itl_p50_s": None, "itl_p95_s": None}
    got = figures(Driven(columns, "gone", (0.0,), 0.0), WORKERS)
    assert (got.errors, got.ttft_p50_ms, got.cached_share, got.router_cpu_us) == (
        6,
        None,
        None,
        None,
    )
    assert got.spread == {}
    assert curves(Driven(columns, "gone", (0.0,), 0.0), WORKERS).ttft_ms.size == 0
