"""The bench of the paper's experiments: whether an index ranks policies as their latency does."""

from __future__ import annotations

import pytest
from bench.paper.ranks import ranks, run_figures

from wardrop.replay import Engine, Fleet, simulate
from wardrop.replay.generate import generate


def figures(ttft_s: float, poa_paper: float, completed: int = 10) -> dict[str, float]:
    """Figures of a run whose bounds are 1 s of TTFT and 2 s of E2E."""
    return {
        "ttft_mean_s": ttft_s,
        "e2e_mean_s": 2 * ttft_s,
        "poa_ttft": ttft_s,
        "poa_e2e": ttft_s,
        "poa_paper": poa_paper,
        "decode_poa_paper": poa_paper,
        "decision_loss": 1.0,
        "completed": completed,
    }


def test_ranks_compare_the_order_of_an_index_with_the_order_of_latencies() -> None:
    found = ranks([[figures(1.0, 9.0), figures(2.0, 8.0), figures(3.0, 7.0)]])
    assert found["poa_ttft"] == found["poa_e2e"] == [1.0]
    assert found["poa_paper_ttft"] == found["decode_poa_paper_e2e"] == [-1.0]


def test_ranks_treat_runs_that_differ_in_the_last_bit_as_equal() -> None:
    bit = 2.0**-52
    found = ranks([[figures(1.0, 7.0), figures(1.0 + bit, 7.0 * (1 - bit)), figures(2.0, 8.0)]])
    assert found["poa_paper_ttft"] == [pytest.approx(1.0)]


def test_ranks_refuse_runs_that_completed_different_numbers_of_requests() -> None:
    with pytest.raises(ValueError, match=r"completed \[9, 10\] requests"):
        ranks([[figures(1.0, 9.0), figures(2.0, 8.0, completed=9)]])


def test_the_estimator_of_a_split_fleet_is_that_of_its_decode_pool() -> None:
    workload = generate("paper(requests=200)", 0)
    fleet = Fleet.split(1, 2, engine=Engine(), anarchy_window=20, concurrency=16)
    result = simulate(workload, fleet, "dynamo")
    prefill, decode = result.anarchy
    assert prefill is not None
    assert decode is not None
    assert prefill["poa_paper"] != decode["poa_paper"]
    assert run_figures(result)["decode_poa_paper"] == decode["poa_paper"]
