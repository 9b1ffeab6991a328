"""The loss of decisions in a replay: its parts, the paper's artefact, where it is shown."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from wardrop.commands.replay import app
from wardrop.replay import Fleet, Slo, simulate
from wardrop.replay.anarchy import combined
from wardrop.replay.generate import generate
from wardrop.replay.report import html
from wardrop.replay.run import Policy
from wardrop.replay.sweep import Plan, sweep

SHARING = generate("prefixes(requests=900,per_s=30)", 1)


@pytest.mark.parametrize("fleet", [Fleet(workers=4), Fleet.split(2, 3)])
@pytest.mark.parametrize("policy", ["round_robin", "toll", "toll+queue"])
def test_no_routing_is_better_than_the_optimum_and_the_parts_add_up(fleet, policy):
    fleet = Fleet(**{**vars(fleet), "anarchy_window": 64})
    result = simulate(SHARING, fleet, policy)
    assert len(result.anarchy) == (2 if fleet.is_split else 1)
    for pool in result.anarchy:
        assert pool is not None
        assert pool["requests"] == len(SHARING)
        assert pool["poa"] >= 1.0
        assert pool["poa_low"] <= pool["poa"] <= pool["poa_high"]
        optimum = pool["free_s"] + pool["split_s"]
        actual = optimum + pool["cache_s"] + pool["load_s"]
        assert pool["poa"] == pytest.approx(actual / optimum, rel=1e-9)
    figures = result.summary()
    assert figures["decision_loss"] >= 1.0
    assert figures["decision_cache"] + figures["decision_load"] == pytest.approx(
        1 - 1 / figures["decision_loss"], abs=1e-9
    )


def test_the_papers_estimator_is_the_window_over_the_workers_where_nothing_can_be_lost():
    # Prompts that share nothing, on an idle fleet: every worker costs the same.
    lone = generate(
        "prefixes(requests=1200,per_s=12,groups=1,prefix=64,suffix=512,output=8,spread=0)", 3
    )
    for workers in (2, 5):
        fleet = Fleet(workers=workers, anarchy_window=40)
        result = simulate(lone, fleet, "least_loaded")
        pool = result.anarchy[0]
        assert pool is not None
        # N/m where all rows cost the same, more where the cheapest m of the N rows are matched.
        assert 0.98 * 40 / workers < pool["poa_paper"] < 1.25 * 40 / workers
        assert pool["poa"] < 1.1


def test_sending_prompts_away_from_their_prefixes_costs_more():
    fleet = Fleet(workers=8, anarchy_window=64)
    blind = simulate(SHARING, fleet, "round_robin").summary()
    seeing = simulate(SHARING, fleet, "toll").summary()
    assert blind["decision_loss"] > seeing["decision_loss"]
    assert blind["decision_cache"] > seeing["decision_cache"]


def test_measuring_does_not_change_the_run():
    plain = simulate(SHARING, Fleet(workers=4), "toll", seed=3)
    measured = simulate(SHARING, Fleet(workers=4, anarchy_window=64), "toll", seed=3)
    assert plain.end_ms.tobytes() == measured.end_ms.tobytes()
    assert plain.anarchy == (None,)
    assert "decision_loss" not in plain.summary()
    assert plain.bound is None
    assert "poa_e2e" not in plain.summary()


def test_seconds_of_pools_add_up():
    pool = {"free_s": 1.0, "split_s": 1.0, "cache_s": 0.0, "load_s": 0.0}
    rest = ("poa", "poa_low", "poa_high", "poa_paper", "poa_square")
    ones = dict.fromkeys((*rest, "regret_mean_s", "model_error", "model_samples"), 1.0)
    lossy = pool | ones | {"cache_s": 2.0, "poa": 2.0}
    figures = combined([pool | ones, lossy])
    assert figures["decision_loss"] == pytest.approx(6 / 4)
    assert figures["decision_cache"] == pytest.approx(2 / 6)
    assert combined([None]) == {}


def test_report_and_command_show_it(tmp_path):
    out = tmp_path / "cells.json"
    arguments = ["prefixes(requests=300,per_s=20)", "--workers", "3", "--poa"]
    arguments += ["--policy", "round_robin,toll", "--json", str(out)]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 0, ran.output
    assert "PoA" in ran.output
    cells = json.loads(out.read_text())["cells"]
    assert all(cell["figures"]["decision_loss"] >= 1.0 for cell in cells)
    plan = Plan(
        lambda _: SHARING, Fleet(workers=3, anarchy_window=64), [Policy("toll")], [1.0], [0]
    )
    page = html({"trace": "x"}, sweep(plan), Slo())
    assert "Price of anarchy" in page


def test_equal_seeds_give_equal_figures():
    fleet = Fleet.split(2, 2, anarchy_window=32)
    one, same = (simulate(SHARING, fleet, "dynamo", seed=1).anarchy for _ in range(2))
    assert json.dumps(one) == json.dumps(same)
    assert np.isfinite(one[0]["poa"])
