"""Advice: ratios with intervals, choice of a policy, files to deploy, resuming, wrong inputs."""

import json
import math
import pickle

import numpy as np
import pytest
from typer.testing import CliRunner

from wardrop import advise as advising
from wardrop.advise import Question, advise, deployment, gather, page
from wardrop.advise.advice import sentences
from wardrop.advise.comparison import Ratio, choose, of, ratio
from wardrop.advise.optimum import find_optimum
from wardrop.commands.advise import app
from wardrop.config import load
from wardrop.replay import Engine, Fleet, Policy, ReplayError
from wardrop.replay.generate import generate
from wardrop.replay.source import TraceSource
from wardrop.replay.sweep import Cell
from wardrop.replay.traces import redraw
from wardrop.slo import Slo

SHARED_PREFIXES = "prefixes(requests=400,per_s=60,groups=40,prefix=6000,suffix=200,output=24)"
"""Traffic on which a router without an index loses by far."""


def question(trace: str = SHARED_PREFIXES, running: str = "round_robin", **fields) -> Question:
    fleet = Fleet(workers=4, engine=Engine(num_blocks=2048))
    narrow = {"asks_workers": False, "asks_split": False, "asks_limits": False}
    fields = {"seeds": 2, "loads": (1.0,)} | narrow | fields
    return Question(TraceSource(trace), fleet, Policy.parse(running), **fields)


def cells(policy: str, values: list[float], figure: str = "ttft_mean_s") -> list[Cell]:
    return [Cell(policy, 1.0, seed, {figure: value}) for seed, value in enumerate(values)]


def test_a_ratio_is_the_geometric_mean_with_students_interval():
    found = ratio(cells("a", [1.0, 2.0, 4.0]), cells("b", [2.0, 2.0, 2.0]), "ttft_mean_s")
    logs = np.log([0.5, 1.0, 2.0])
    half = 4.302652729911275 * logs.std(ddof=1) / math.sqrt(3)
    assert found.mean == pytest.approx(1.0)
    assert found.low == pytest.approx(math.exp(-half))
    assert found.high == pytest.approx(math.exp(half))


def test_more_goodput_is_a_lower_cost():
    figure = "goodput_per_s"
    found = ratio(cells("a", [20.0, 20.0], figure), cells("b", [10.0, 10.0], figure), figure)
    assert found.mean == pytest.approx(0.5)
    assert found.is_better
    assert not found.is_worse


@pytest.mark.parametrize(
    ("best", "expected"),
    [
        ([0.50, 0.51, 0.49], "sticky"),  # clearly lower
        ([0.99, 1.01, 0.98], "round_robin"),  # no clear gain: nothing changes
    ],
)
def test_the_policy_in_use_stays_unless_another_one_is_clearly_better(best, expected):
    every = cells("round_robin", [1.0, 1.0, 1.0]) + cells("sticky", best)
    every += cells("toll+queue", [1.0, 0.99, 1.01])
    assert choose(question(), every) == expected


def test_the_default_wins_over_a_policy_that_is_no_better():
    every = cells("round_robin", [1.0, 1.0]) + cells("toll+queue", [0.5, 0.501])
    every += cells("sticky", [0.499, 0.5])
    assert choose(question(), every) == "toll+queue"


def test_advice_finds_the_caches_and_its_file_configures_the_router(tmp_path):
    asked = question(running="round_robin", seeds=3, loads=(1.0, 1.5))
    evidence = gather(asked)
    found = advise(asked, evidence)
    assert found.changes
    assert found.ratios[1.0].is_better
    assert of(evidence.policies, found.policy.label)
    file = tmp_path / "wardrop.yaml"
    file.write_text(deployment(asked, found))
    config = load({}, {}, file)
    assert config.routing.policy == found.policy.name
    assert config.routing.queue == (found.policy.queue is not None)
    text = page(asked, evidence, found, deployment(asked, found))
    for sentence in sentences(asked, evidence, found):
        assert sentence.split("(")[0].strip() in text
    assert "http://" not in text.replace("http://www.w3.org", "")


def test_numbers_of_workers_and_a_split_are_judged():
    asked = question(
        "prefixes(requests=300,per_s=30,output=40)",
        running="dynamo",
        asks_workers=True,
        asks_split=True,
        slo=Slo(ttft_s=0.2, itl_s=0.05),
    )
    evidence = gather(asked)
    found = advise(asked, evidence)
    sizes = sorted({size for size, _ in evidence.workers})
    assert sizes[0] < 4 < sizes[-1]
    assert found.fewest_workers in sizes
    assert evidence.split is not None
    assert evidence.split.prefill_workers + evidence.split.decode_workers == 4
    assert found.split_ratio is not None


def test_the_optimum_is_bracketed_and_each_limit_has_its_price():
    asked = question(running="round_robin", asks_limits=True, objective="e2e", seeds=3)
    evidence = gather(asked)
    optimum = evidence.optimum
    assert optimum is not None
    assert optimum.figure == "e2e_mean_s"
    prices = {price.policy: price for price in optimum.prices}
    assert set(prices) == {cell.policy for cell in evidence.policies}
    assert all(1.0 <= price.low <= price.high for price in prices.values())
    assert min(price.low for price in prices.values()) == pytest.approx(1.0, abs=0.02)
    assert prices["round_robin"].low > 2 * prices["toll+queue"].low
    assert {"shared cache", "unlimited KV memory", "one more worker"} <= set(optimum.savings)
    found = advise(asked, evidence)
    said = " ".join(sentences(asked, evidence, found))
    assert f"The price of anarchy of {found.policy.label} in mean time to last token" in said
    text = page(asked, evidence, found, deployment(asked, found))
    assert "How far from the optimum" in text
    assert "one more worker" in text


def test_a_policy_that_loses_requests_has_no_price():
    """What it costs to serve some of the requests says nothing about serving all of them."""
    asked = question("prefixes(requests=60,per_s=30)")
    whole = {"completed": 60.0, "e2e_mean_s": 1000.0, "ttft_mean_s": 1000.0}
    every = [Cell("toll", 1.0, seed, whole) for seed in range(2)]
    every += [Cell("dynamo", 1.0, 0, whole), Cell("dynamo", 1.0, 1, whole | {"completed": 59.0})]
    found = find_optimum(
        asked, every, Policy.parse("toll"), lambda stage, fleet, policies: every[:2]
    )
    assert [price.policy for price in found.prices] == ["toll"]
    none = find_optimum(asked, every[2:], Policy.parse("dynamo"), lambda *_: every[2:])
    assert (none.prices, none.refusal) == ((), "no policy completed every request")


def test_a_loss_is_named_with_its_load():
    asked = question(seeds=3)
    every = [
        Cell(policy, 1.0, seed, dict.fromkeys(figures, 1.0) | figures)
        for policy, figures in (
            ("round_robin", {"ttft_mean_s": 1.0, "ttft_p99_s": 1.0}),
            ("toll+queue", {"ttft_mean_s": 0.5, "ttft_p99_s": 1.5}),
        )
        for seed in range(3)
    ]
    for cell in every:
        cell.figures.update({"itl_mean_ms": 1.0, "e2e_mean_s": 1.0, "goodput_per_s": 1.0})
    evidence = advising.Evidence(tuple(every), Policy.parse("toll+queue()"))
    found = advise(asked, evidence)
    assert [(loss.load, loss.ratio) for loss in found.losses] == [(1.0, Ratio(1.5, 1.5, 1.5))]
    assert "99th percentile" in " ".join(sentences(asked, evidence, found))


def test_an_interrupted_advice_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "cells.jsonl"
    asked = question("prefixes(requests=60,per_s=30)", asks_workers=True)
    first = gather(asked, resume=path)
    kept = path.read_text().splitlines()
    path.write_text("\n".join(kept[:-3]) + "\n")
    again = gather(asked, resume=path)
    assert len(path.read_text().splitlines()) == len(kept)
    assert [cell.figures for cell in again.policies] == [cell.figures for cell in first.policies]


def test_redrawn_arrivals_keep_the_requests_and_the_span():
    workload = generate("prefixes(requests=200,per_s=10)", 0)
    other = redraw(workload, 3)
    assert np.array_equal(other.blocks, workload.blocks)
    assert other.arrival_ms[-1] == pytest.approx(workload.arrival_ms[-1])
    assert (np.diff(other.arrival_ms) >= 0).all()
    assert not np.array_equal(other.arrival_ms, workload.arrival_ms)
    assert redraw(workload, 0) is workload


def test_a_workload_travels_to_another_process_without_its_native_form():
    workload = generate("agents(sessions=5)", 0)
    assert workload.native
    copy = pickle.loads(pickle.dumps(workload))
    assert "native" not in copy.__dict__
    assert np.array_equal(copy.blocks, workload.blocks)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["no-such-trace.jsonl"], "no trace at"),
        (["prefixes(nothing=1)"], "nothing"),
        (["prefixes(requests=20)", "--running", "tol"], "tol"),
        (["prefixes(requests=20)", "--objective", "speed"], "expected one of"),
        (["prefixes(requests=20)", "--loads", "2,3"], "1 among them"),
        (["prefixes(requests=20)", "--loads", "x"], "--loads"),
        (["prefixes(requests=20)", "--disagg", "3"], "PREFILLxDECODE"),
        (["prefixes(requests=20)", "--timing", "none.npz"], "none.npz"),
        (["prefixes(requests=20)", "--part", "1:0"], "part"),
    ],
)
def test_wrong_input_ends_with_exit_code_2_and_a_reason(arguments, text, tmp_path):
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert text in result.output
    assert "Traceback" not in result.output


def test_the_command_writes_page_configuration_and_cells(tmp_path):
    trace = "prefixes(requests=60,per_s=40)"
    flags = ["--seeds", "2", "--loads", "1", "--workers", "2", "--no-try-split"]
    result = CliRunner().invoke(app, [trace, *flags, "--out", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "advice.html").read_text().startswith("<!doctype html>")
    assert "routing:" in (tmp_path / "wardrop.yaml").read_text()
    rows = [json.loads(line) for line in (tmp_path / "cells.jsonl").read_text().splitlines()]
    assert rows


def test_without_ray_the_flag_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    flags = ["--ray", "auto", "--out", str(tmp_path)]
    result = CliRunner().invoke(app, ["prefixes(requests=20)", *flags])
    assert result.exit_code == 2
    assert "wardrop[ray]" in result.output


@pytest.mark.heavy
def test_two_ray_workers_give_the_same_figures_as_threads():
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    from wardrop.replay.runners import RayRunner

    asked = question("prefixes(requests=80,per_s=30)")
    local = gather(asked)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        runner = RayRunner(cluster.address)
        try:
            assert runner.width == 2
            remote = gather(asked, runner=runner)
        finally:
            runner.close()
    finally:
        cluster.shutdown()
    assert not ray.is_initialized()
    assert [cell.figures for cell in remote.policies] == [cell.figures for cell in local.policies]


def test_a_question_without_an_answer_is_refused():
    for fields in ({"seeds": 1}, {"share": 1.0}, {"objective": "x"}, {"loads": (0.5,)}):
        with pytest.raises(ReplayError):
            question(**fields)
