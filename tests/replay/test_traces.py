"""Trace files and generators give the columns that they describe."""

import gzip
import json

import numpy as np
import pytest
import zstandard

from wardrop.calls import CallError
from wardrop.replay import ReplayError, load, restart, spread
from wardrop.replay.generate import GENERATORS, generate, mooncake_rows

ROWS = [
    {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [9, 4]},
    {"timestamp": 0, "input_length": 513, "output_length": 0, "hash_ids": [9, 7]},
    {"timestamp": 3000, "input_length": 512, "output_length": 2, "hash_ids": [9]},
]


def text(rows):
    return "\n".join(json.dumps(row) for row in rows).encode()


@pytest.mark.parametrize("packed", ["jsonl", "jsonl.gz", "jsonl.zst"])
def test_a_mooncake_trace_reads_the_same_however_it_is_packed(tmp_path, packed):
    path = tmp_path / f"trace.{packed}"
    raw = text(ROWS)
    path.write_bytes(
        {"jsonl": lambda: raw, "jsonl.gz": lambda: gzip.compress(raw)}.get(
            packed, lambda: zstandard.compress(raw)
        )()
    )
    workload = load(path)
    assert workload.block_size == 512
    assert workload.input_tokens.tolist() == [700, 513, 512]
    assert workload.output_tokens.tolist() == [5, 1, 2]
    assert workload.blocks.tolist() == [2, 0, 2, 1, 2]
    assert workload.block_start.tolist() == [0, 2, 4, 5]


def test_ticks_are_spread_inside_their_interval_and_stay_in_order(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(text(ROWS))
    moved = spread(load(path), seed=3).arrival_ms
    assert (np.diff(moved) >= 0).all()
    assert (moved[:2] < 3000).all()
    assert 3000 <= moved[2] < 6000
    assert moved[0] != moved[1]


def test_sessions_become_turns_with_pauses(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [
        {**ROWS[0], "session_id": "a"},
        {**ROWS[1], "session_id": "b"},
        {**ROWS[2], "session_id": "a", "delay": 250},
    ]
    path.write_bytes(text(rows))
    workload = load(path)
    assert workload.after.tolist() == [2**32 - 1, 2**32 - 1, 0]
    assert workload.think_ms.tolist() == [0, 0, 250]


def test_azure_arrivals_share_nothing(tmp_path):
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:17:04.0319600,100,8\n2023-11-16 18:17:03.9799600,65,10\n"
    )
    workload = load(path)
    assert workload.arrival_ms == pytest.approx([0.0, 52.0], abs=1e-3)
    assert workload.input_tokens.tolist() == [65, 100]
    assert len(set(workload.blocks.tolist())) == workload.blocks.size == 4


def test_a_dynamo_request_trace_is_read(tmp_path):
    def row(received, tokens, hashes):
        replay = {
            "trace_block_size": 16,
            "input_length": tokens,
            "input_sequence_hashes": hashes,
        }
        request = {"request_received_ms": received, "output_tokens": 4, "replay": replay}
        return {"event": {"event_type": "request_end", "request": request}}

    path = tmp_path / "dynamo.jsonl"
    path.write_bytes(text([row(2000, 40, [5, 6]), row(1000, 32, [5, 7])]))
    workload = load(path)
    assert workload.arrival_ms.tolist() == [0, 1000]
    assert workload.input_tokens.tolist() == [32, 40]
    first, second = workload.blocks[:2].tolist(), workload.blocks[2:].tolist()
    assert first[0] == second[0]
    assert len(second) == 3


@pytest.mark.parametrize("name", GENERATORS)
def test_a_generator_is_a_function_of_its_seed(name):
    size = {"agents": "sessions=20", "agent_loops": "sessions=20", "documents": "count=20"}.get(
        name, "requests=200"
    )
    one, same, other = (generate(f"{name}({size})", seed) for seed in (1, 1, 2))
    one.native  # noqa: B018 - building it checks every column
    for column in ("arrival_ms", "input_tokens", "blocks"):
        assert np.array_equal(getattr(one, column), getattr(same, column))
    assert not np.array_equal(one.input_tokens, other.input_tokens) or name == "paper"


def test_a_conversation_keeps_its_prefix_from_turn_to_turn():
    workload = generate("agents(sessions=5,turns=6)", 4)
    for i in np.flatnonzero(workload.after != 2**32 - 1):
        before = int(workload.after[i])
        mine = workload.blocks[int(workload.block_start[i]) : int(workload.block_start[i + 1])]
        theirs = workload.blocks[
            int(workload.block_start[before]) : int(workload.block_start[before + 1])
        ]
        whole = int(workload.input_tokens[before]) // workload.block_size
        assert np.array_equal(mine[:whole], theirs[:whole])
        assert workload.input_tokens[i] > workload.input_tokens[before]


def test_bursts_keep_the_mean_rate_and_crowd_the_bursts():
    workload = generate("bursts(requests=20000,per_s=50,factor=8,every_s=60,for_s=6)", 1)
    inside = (workload.arrival_ms / 1e3) % 60 < 6
    assert workload.span_s == pytest.approx(400, rel=0.1)
    assert inside.mean() == pytest.approx(8 * 6 / (8 * 6 + 54), abs=0.05)


def test_the_papers_workload_is_five_templates_of_128_tokens():
    workload = generate("paper(requests=500)", 0)
    assert set(workload.input_tokens.tolist()) == {128}
    assert np.unique(workload.blocks).size == 10


def test_an_unknown_generator_or_parameter_is_named():
    with pytest.raises(ReplayError, match="generator"):
        generate("nothing")
    with pytest.raises(
        ReplayError, match="paper: got parameter 'colour'; expected one of requests"
    ):
        generate("paper(colour=1)")
    with pytest.raises(ReplayError, match=r"bursts: got parameter 'foo'; .*factor, .*requests"):
        generate("bursts(foo=1)")
    with pytest.raises(ReplayError, match=r"requests=1\.5; expected a whole number"):
        generate("bursts(requests=1.5)")
    with pytest.raises(ReplayError, match="zipf='x'; expected a number"):
        generate("prefixes(zipf=x)")
    with pytest.raises(CallError, match="expected NAME"):
        generate("paper(")
    for text in ("prefixes(groups=0)", "phases(steps=[])", "prefixes(block_size=0)"):
        with pytest.raises(ReplayError):
            generate(text)


def test_a_list_is_one_value():
    workload = generate("phases(requests=400,per_s=10,steps=[0.5,2])", 1)
    half = workload.arrival_ms[200] - workload.arrival_ms[0]
    assert half > 2 * (workload.arrival_ms[-1] - workload.arrival_ms[200])


def test_a_part_starts_at_0_and_drops_turns_before_the_cut():
    workload = generate("agents(sessions=30)", 0).part(0.5, 1.0)
    workload.native  # noqa: B018 - building it checks every column
    assert workload.arrival_ms[workload.after == 2**32 - 1][0] == 0


def test_ideal_reuse_counts_whole_blocks_seen_before(tmp_path):
    path = tmp_path / "trace.jsonl"
    path.write_bytes(text(ROWS))
    assert load(path).ideal_reuse() == pytest.approx((512 + 512) / (700 + 513 + 512))


def test_mooncake_rows_read_back_as_the_same_workload(tmp_path):
    workload = generate("prefixes(requests=50)", 0)
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(mooncake_rows(workload)))
    again = load(path)
    assert np.array_equal(again.input_tokens, workload.input_tokens)
    assert np.allclose(np.diff(again.arrival_ms), np.diff(workload.arrival_ms))
    assert again.ideal_reuse() == workload.ideal_reuse()


def test_a_restart_moves_conversations_as_a_whole_and_keeps_every_prompt():
    workload = generate("prefixes(requests=300,groups=12,per_s=2)", seed=1)
    moved = restart(workload, seed=5, over_s=60)

    def prompts(of):
        """Per family: gaps between its requests and their prompts."""
        found = {}
        for i in range(len(of)):
            ids = of.blocks[int(of.block_start[i]) : int(of.block_start[i + 1])]
            found.setdefault(int(ids[0]), []).append((of.arrival_ms[i], tuple(ids.tolist())))
        return found

    before, after = prompts(workload), prompts(moved)
    assert before.keys() == after.keys()
    for family, rows in before.items():
        assert [ids for _, ids in rows] == [ids for _, ids in after[family]]
        gaps = np.diff([at for at, _ in rows])
        assert gaps == pytest.approx(np.diff([at for at, _ in after[family]]))
    assert np.all(np.diff(moved.arrival_ms) >= 0)
    assert max(rows[0][0] for rows in after.values()) <= 60_000
    assert restart(workload, seed=6).arrival_ms.tolist() != moved.arrival_ms.tolist()
