"""Kinds of traffic: their figures are those of the public traces that they name."""

from __future__ import annotations

import numpy as np
import pytest

from wardrop.replay.generate import generate
from wardrop.replay.kinds import merge, support
from wardrop.replay.workload import NO_PREDECESSOR, ReplayError, Workload


def ids(workload: Workload, row: int) -> np.ndarray:
    start, end = workload.block_start[row : row + 2].astype(int)
    return workload.blocks[start:end]


def test_agent_loops_have_the_lengths_and_the_reuse_of_tracelab():
    workload = generate("agent_loops(sessions=400)", 3)
    roots = workload.after == NO_PREDECESSOR
    assert roots.sum() == 400
    assert workload.ideal_reuse() == pytest.approx(0.958, abs=0.005)
    assert workload.output_tokens.mean() == pytest.approx(523, rel=0.05)
    calls = np.diff(np.flatnonzero(np.append(roots, True)))
    # Percentiles 25, 50 and 90 of the source's calls after a tool are 4, 15 and 135.
    assert np.quantile(calls, [0.25, 0.5, 0.9]) / 1.12 == pytest.approx([4, 15, 135], rel=0.35)
    assert calls.max() == 200


def test_a_context_grows_until_it_is_compacted_to_its_system_prompt():
    workload = generate("agent_loops(sessions=40,system=1000,systems=1,context=8000)", 1)
    assert workload.input_tokens.max() <= 8000 + 1000
    compacted = 0
    for row in np.flatnonzero(workload.after != NO_PREDECESSOR):
        before = int(workload.after[row])
        mine, theirs = ids(workload, row), ids(workload, before)
        if workload.input_tokens[row] < workload.input_tokens[before]:
            compacted += 1
            shared = 1000 // 64
        else:
            shared = int(workload.input_tokens[before]) // 64
        assert np.array_equal(mine[:shared], theirs[:shared])
    assert compacted > 10


def test_a_context_no_larger_than_its_system_prompt_is_refused():
    with pytest.raises(ReplayError, match="got context=1000; expected above system=1000"):
        generate("agent_loops(system=1000,context=1000)")


def test_support_shares_one_template_and_nothing_else():
    workload = generate("support(requests=500,template=1000)", 0)
    template = ids(workload, 0)[: 1000 // 64]
    for row in range(1, 500):
        assert np.array_equal(ids(workload, row)[: template.size], template)
        assert not np.isin(ids(workload, row)[template.size :], ids(workload, row - 1)).any()
    assert workload.input_tokens.mean() - 1000 == pytest.approx(1155, rel=0.1)
    assert workload.output_tokens.mean() == pytest.approx(211, rel=0.1)


def test_questions_share_their_document_only():
    workload = generate("documents(count=100)", 2)
    assert len(workload) / 100 == pytest.approx(7.7, rel=0.25)
    assert workload.input_tokens.mean() == pytest.approx(24_000, rel=0.25)
    assert (np.diff(workload.arrival_ms) >= 0).all()
    firsts = {int(ids(workload, row)[0]) for row in range(len(workload))}
    assert len(firsts) == 100


def test_crowds_arrive_as_unevenly_as_the_source():
    workload = generate("crowds(requests=20000)", 1)
    edges = np.arange(0, workload.arrival_ms[-1], 10_000)
    counts = np.histogram(workload.arrival_ms, edges)[0]
    assert counts.var() / counts.mean() == pytest.approx(72, rel=0.3)
    assert workload.input_tokens.mean() == pytest.approx(2048, rel=0.05)
    assert workload.output_tokens.mean() == pytest.approx(28, rel=0.1)


def test_only_a_crowd_shares_a_prefix():
    workload = generate("crowds(requests=1000,share=0.4,crowd=100)", 0)
    firsts = np.array([ids(workload, row)[0] for row in range(1000)])
    names, members = np.unique(firsts, return_counts=True)
    assert sorted(members[members > 1].tolist()) == [100] * 4
    assert names.size == 4 + 600


def test_crowds_without_a_background_and_without_a_crowd():
    assert len(generate("crowds(requests=100,share=1)", 0)) == 100
    assert generate("crowds(requests=100,share=0)", 0).ideal_reuse() == 0


def test_tenants_hold_every_part_on_one_clock():
    workload = generate("tenants(requests=3000)", 0)
    assert (np.diff(workload.arrival_ms) >= 0).all()
    sessions = workload.after != NO_PREDECESSOR
    assert (workload.after[sessions] < np.flatnonzero(sessions)).all()
    assert len(workload) == pytest.approx(3000, rel=0.3)
    only_bots = generate("tenants(requests=500,agents=0,questions=0,bots=1)", 0)
    assert len(only_bots) == 500


def test_merged_parts_share_no_block_and_keep_their_reuse():
    one, two = support(200, seed=1), support(300, per_s=5.0, seed=2)
    both = merge("both", [one, two])
    assert len(both) == 500
    assert both.blocks.max() == one.blocks.max() + two.blocks.max() + 1
    tokens = [float(part.input_tokens.sum()) for part in (one, two)]
    reused = sum(n * part.ideal_reuse() for n, part in zip(tokens, (one, two), strict=True))
    assert both.ideal_reuse() == pytest.approx(reused / sum(tokens))


def test_parts_with_other_block_sizes_are_refused():
    with pytest.raises(ReplayError, match=r"block sizes \[16, 64\]"):
        merge("both", [support(10), support(10, block_size=16)])


@pytest.mark.parametrize(
    "text",
    [
        "documents(questions=0.5)",
        "crowds(share=2)",
        "crowds(crowd=0)",
        "tenants(agents=-1)",
        "tenants(agents=0,questions=0,bots=0)",
        "tenants(per_s=0)",
        "support(per_s=0)",
        "agent_loops(block_size=0)",
        "agent_loops(calls=0)",
        "agent_loops(max_calls=0)",
    ],
)
def test_figures_out_of_range_are_refused(text):
    with pytest.raises(ReplayError):
        generate(text)
