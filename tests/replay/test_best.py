"""The search for the best routing, and what relaxing a limit saves."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from wardrop._core import simulate_planned
from wardrop.commands.replay import app
from wardrop.replay import Engine, Fleet, ReplayError, affine, simulate
from wardrop.replay.best import find_best
from wardrop.replay.generate import generate
from wardrop.replay.limits import relaxed, what_is_lost
from wardrop.replay.run import Policy

SHARING = generate("prefixes(requests=150,per_s=30)", 1)
POLICIES = [Policy.parse(text) for text in ("round_robin", "toll")]


@pytest.mark.parametrize("fleet", [Fleet(workers=3), Fleet.split(2, 2)], ids=["whole", "split"])
def test_best_lies_between_the_bound_and_the_policies(fleet, tmp_path):
    loaded = replace(fleet, rate=3.0)
    file = tmp_path / "best.json"
    best = find_best(SHARING, loaded, POLICIES, e2e=1.0, seconds=1.0, threads=2, resume=file)
    assert best.lower_s <= best.cost_s <= best.policy_cost_s
    assert best.evaluations > 2
    runs = [simulate(SHARING, loaded, policy).cost.e2e_s for policy in POLICIES]
    assert best.policy_cost_s == pytest.approx(min(runs))
    low, high = best.price(max(runs))
    assert 1.0 <= low <= high
    if best.plan is not None:
        # The plan reaches its cost, so the cost is no promise but a run.
        raw = simulate_planned(SHARING.native, loaded.to_json(0), json.dumps(best.plan))
        end, start = (np.frombuffer(raw[name]) for name in ("end_ms", "arrival_ms"))
        assert (end - start).sum() / 1e3 == pytest.approx(best.cost_s)
    again = find_best(SHARING, loaded, POLICIES, e2e=1.0, seconds=0.3, threads=1, resume=file)
    assert again.cost_s <= best.cost_s * (1 + 1e-12)


def test_search_finds_what_round_robin_misses():
    # Three prefixes on two workers: round robin keeps each prefix on one worker only by luck.
    requests = generate("prefixes(requests=60,per_s=3,groups=3,zipf=0,spread=0,output=2)", 0)
    best = find_best(requests, Fleet(workers=2), POLICIES[:1], ttft=1.0, seconds=2.0, threads=1)
    lost_s = best.policy_cost_s - best.lower_s
    assert best.cost_s - best.lower_s < 0.8 * lost_s


def test_search_refuses_what_it_cannot_do():
    with pytest.raises(ReplayError, match="none completes"):
        find_best(SHARING, Fleet(workers=1, engine=Engine(num_blocks=1)), POLICIES, e2e=1.0)
    with pytest.raises(ValueError, match="one above 0"):
        find_best(SHARING, Fleet(workers=1), POLICIES)
    plan = {"worker": [0], "decode_worker": [], "rank": [0.0]}
    plan |= {"most_prefilling": 1, "most_open": 1, "is_strict": False}
    with pytest.raises(ValueError, match="one entry per request"):
        simulate_planned(SHARING.native, Fleet(workers=1).to_json(0), json.dumps(plan))


def test_each_limit_saves_where_it_binds():
    # One prefix per request pair, placed blindly: only a shared cache finds it.
    timing = affine(prefill_per_token_ms=0.1, decode_base_ms=1.0)
    blind = Fleet(workers=4, engine=Engine(timing=timing))
    saved = {
        one.limit: one
        for one in what_is_lost(
            lambda seed: generate("prefixes(requests=300,per_s=4,groups=60,zipf=0)", seed),
            blind,
            Policy("round_robin"),
            [0, 1, 2],
        )
    }
    assert saved["shared cache"].ttft_low > 0.1
    assert abs(saved["unlimited KV memory"].ttft) < 0.05
    assert saved["shared cache"].ttft_low <= saved["shared cache"].ttft
    # Long answers in a small memory: requests wait for blocks.
    short = replace(blind, engine=replace(blind.engine, num_blocks=64), workers=2)
    tight = {
        one.limit: one
        for one in what_is_lost(
            lambda seed: generate("prefixes(requests=200,per_s=10,prefix=64,output=512)", seed),
            short,
            Policy("least_loaded"),
            [0],
        )
    }
    assert tight["unlimited KV memory"].e2e > 0.5
    assert tight["one more worker"].e2e > 0.1
    assert np.isnan(tight["one more worker"].e2e_low)


def test_relaxed_worlds_of_a_split_fleet_and_of_a_queue():
    split = Fleet.split(1, 2, speeds=(1.0, 0.5, 0.5))
    worlds = relaxed(split, Policy("toll", queue={}))
    assert "pooled queue" not in worlds
    assert worlds["one more prefill worker"][0].speeds == (1.0, 1.0, 0.5, 0.5)
    assert worlds["one more decode worker"][0].speeds == (1.0, 0.5, 0.5, 1.0)
    with pytest.raises(ReplayError, match="no seed"):
        what_is_lost(lambda _: SHARING, split, Policy("toll"), [])


def test_command_shows_the_bracket_and_the_savings():
    arguments = ["prefixes(requests=60,per_s=20)", "--workers", "2", "--policy", "toll"]
    ran = CliRunner().invoke(app, [*arguments, "--best-s", "0.2", "--lost", "--seeds", "2"])
    assert ran.exit_code == 0, ran.output
    assert "price of anarchy by E2E" in ran.output
    assert "shared cache saves" in ran.output
    ran = CliRunner().invoke(app, [*arguments, "--best-s", "0.2", "--concurrency", "4"])
    assert ran.exit_code == 2
