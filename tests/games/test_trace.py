"""Traces as the games take them: ticks spread, load scaled, generation seeded."""

import json
from pathlib import Path

import numpy as np
import pytest

from wardrop.games.trace import Workload, generate_trace, read_trace

ROWS = [
    {"timestamp": 3000, "input_length": 512, "output_length": 0, "hash_ids": [1]},
    {"timestamp": 3000, "input_length": 1025, "output_length": 9, "hash_ids": [1, 2, 3]},
    {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]},
]


def test_a_recorded_trace_is_sorted_by_arrival_and_its_ticks_are_spread(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.input_tokens.tolist() == [700, 512, 1025]
    assert trace.output_tokens.tolist() == [5, 1, 9]
    assert trace.blocks == ((1, 2), (1,), (1, 2, 3))
    assert trace.block_tokens == 512
    assert trace.arrival_s.tolist() == [0, 3, 4.5]
    assert read_trace(tmp_path / "t.jsonl", spread_ties=False).arrival_s.tolist() == [0, 3, 3]


def test_load_scales_by_dividing_gaps(tmp_path: Path) -> None:
    trace = generate_trace(Workload(5.0, 60.0), 1)
    fast = trace.faster(2.0)
    assert fast.span_s == pytest.approx(trace.span_s / 2)
    assert fast.requests == trace.requests


def test_generation_is_seeded_and_keeps_its_means() -> None:
    a, b = generate_trace(Workload(20.0, 200.0), 4), generate_trace(Workload(20.0, 200.0), 4)
    assert np.array_equal(a.arrival_s, b.arrival_s)
    assert a.blocks == b.blocks
    assert a.requests / a.span_s == pytest.approx(20.0, rel=0.02)
    assert a.input_tokens.mean() == pytest.approx(2_000, rel=0.05)
    assert all(
        len(ids) == -(-int(n) // 64) for ids, n in zip(a.blocks, a.input_tokens, strict=True)
    )
