"""Traces: three encodings read alike, ticks spread, wrong rows named, generation seeded."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from wardrop.games.errors import GameError
from wardrop.games.trace import Workload, generate_trace, read_trace, spread_over_ticks

ROWS = [
    {"timestamp": 0, "input_length": 700, "output_length": 5, "hash_ids": [1, 2]},
    {"timestamp": 3000, "input_length": 512, "output_length": 0, "hash_ids": [1]},
    {"timestamp": 3000, "input_length": 1025, "output_length": 9, "hash_ids": [1, 2, 3]},
]


def test_plain_gzip_and_zstd_read_alike(tmp_path: Path) -> None:
    text = "\n".join(json.dumps(row) for row in ROWS).encode()
    (tmp_path / "t.jsonl").write_bytes(text)
    (tmp_path / "t.jsonl.gz").write_bytes(gzip.compress(text))
    (tmp_path / "t.jsonl.zst").write_bytes(zstandard.compress(text))
    for name in ("t.jsonl", "t.jsonl.gz", "t.jsonl.zst"):
        trace = read_trace(tmp_path / name)
        assert trace.input_tokens.tolist() == [700, 512, 1025]
        assert trace.output_tokens.tolist() == [5, 1, 9]
        assert trace.blocks == ((1, 2), (1,), (1, 2, 3))
        assert trace.block_tokens == 512


def test_requests_of_one_tick_are_spread_until_the_next() -> None:
    spread = spread_over_ticks(np.array([0.0, 0.0, 0.0, 3.0, 3.0, 6.0]))
    assert spread.tolist() == [0.0, 1.0, 2.0, 3.0, 4.5, 6.0]


def test_load_scales_by_dividing_gaps(tmp_path: Path) -> None:
    trace = generate_trace(Workload(5.0, 60.0), 1)
    fast = trace.faster(2.0)
    assert fast.span_s == pytest.approx(trace.span_s / 2)
    assert fast.requests == trace.requests


@pytest.mark.parametrize("row", ["{}", "[1]", "not json", '{"timestamp": "x"}'])
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, row: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + row + "\n")
    with pytest.raises(GameError, match=r"bad\.jsonl:2"):
        read_trace(path)


def test_a_missing_or_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GameError, match="expected a trace file"):
        read_trace(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(GameError, match="no rows"):
        read_trace(tmp_path / "empty.jsonl")


def test_generation_is_seeded_and_keeps_its_means() -> None:
    a, b = generate_trace(Workload(20.0, 200.0), 4), generate_trace(Workload(20.0, 200.0), 4)
    assert np.array_equal(a.arrival_s, b.arrival_s)
    assert a.blocks == b.blocks
    assert a.requests / a.span_s == pytest.approx(20.0, rel=0.02)
    assert a.input_tokens.mean() == pytest.approx(2_000, rel=0.05)
    assert all(
        len(ids) == -(-int(n) // 64) for ids, n in zip(a.blocks, a.input_tokens, strict=True)
    )


def test_shared_traces_read_whole(shared: Path) -> None:
    trace = read_trace(shared / "traces" / "mooncake_conversation_0_30min.jsonl.gz")
    assert trace.requests == 5_719
    assert trace.block_tokens == 512
    agents = read_trace(shared / "traces" / "claude_code_dev48.jsonl.zst", limit=100)
    assert agents.block_tokens == 64
