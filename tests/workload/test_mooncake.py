"""Recorded traces become requests of the same lengths and the same sharing."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from wardrop.workload import TraceError, TraceRow, read_trace, turns_of_trace

ROWS = [
    {"timestamp": 1000, "input_length": 130, "output_length": 5, "hash_ids": [7, 8, 9]},
    {"timestamp": 1000, "input_length": 128, "output_length": 0, "hash_ids": [7, 8]},
    {"timestamp": 1000, "input_length": 65, "output_length": 4, "hash_ids": [7, 10]},
    {"timestamp": 4000, "input_length": 192, "output_length": 6, "hash_ids": [7, 8, 11]},
    {"timestamp": 7000, "input_length": 1, "output_length": 1, "hash_ids": [12]},
]


def written(path: Path, rows: list[dict[str, object]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text)
    if path.suffix == ".zst":
        text = zstandard.compress(text)
    path.write_bytes(text)
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
def test_plain_and_packed_files_read_alike(tmp_path: Path, name: str) -> None:
    rows = read_trace(written(tmp_path / name, ROWS))
    assert [row.input_tokens for row in rows] == [130, 128, 65, 192, 1]
    assert [row.arrival_s for row in rows] == [0, 0, 0, 3, 6]
    assert rows[0].hash_ids == (7, 8, 9)


def test_rows_of_one_tick_are_spread_within_it(tmp_path: Path) -> None:
    turns = turns_of_trace(read_trace(written(tmp_path / "t.jsonl", ROWS)), seconds=100)
    assert [t.time_s for t in turns] == pytest.approx([0, 1, 2, 3, 6])


def test_equal_ids_are_equal_blocks_and_other_ids_differ(tmp_path: Path) -> None:
    turns = turns_of_trace(read_trace(written(tmp_path / "t.jsonl", ROWS)), seconds=100)
    assert [len(t.tokens) for t in turns] == [130, 128, 65, 192, 1]
    assert np.array_equal(turns[0].tokens[:128], turns[1].tokens)
    assert np.array_equal(turns[0].tokens[:64], turns[2].tokens[:64])
    assert not np.array_equal(turns[0].tokens[128:130], turns[3].tokens[128:130])
    assert turns[1].output_tokens == 1  # a request for no tokens can not be timed


def test_load_is_scaled_by_dividing_gaps(tmp_path: Path) -> None:
    rows = read_trace(written(tmp_path / "t.jsonl", ROWS))
    own_rate = len(rows) / 6
    double = turns_of_trace(rows, seconds=100, requests_per_s=2 * own_rate)
    assert [t.time_s for t in double] == pytest.approx([0, 0.5, 1, 1.5, 3])
    assert [len(t.tokens) for t in double] == [130, 128, 65, 192, 1]


def test_a_run_ends_and_long_prompts_are_left_out(tmp_path: Path) -> None:
    rows = read_trace(written(tmp_path / "t.jsonl", ROWS))
    assert len(turns_of_trace(rows, seconds=2.5)) == 3
    assert [len(t.tokens) for t in turns_of_trace(rows, seconds=9, max_prompt_tokens=128)] == [
        128,
        65,
        1,
    ]
    with pytest.raises(TraceError, match="no row is left"):
        turns_of_trace(rows[3:], seconds=0.1, max_prompt_tokens=100)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"timestamp": 1, "input_length": 2, "output_length": 2}, "'hash_ids' is missing"),
        ({**ROWS[0], "hash_ids": []}, "at least one id"),
        ({**ROWS[0], "input_length": "many"}, "whole number"),
        ({**ROWS[0], "hash_ids": [-1]}, "whole number"),
    ],
)
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, row: dict[str, object], what: str) -> None:
    path = written(tmp_path / "t.jsonl", [ROWS[0], row])
    with pytest.raises(TraceError, match=rf"line 2: .*{what}"):
        read_trace(path)


def test_lengths_that_fit_no_block_size_are_refused() -> None:
    rows = [TraceRow(0, 10_000, 1, (1, 2)), TraceRow(1, 100, 1, (1, 2, 3))]
    with pytest.raises(TraceError, match="no block size"):
        turns_of_trace(rows, seconds=1)


def test_a_missing_or_empty_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot read"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="no rows"):
        read_trace(written(tmp_path / "t.jsonl", []))
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip")
    with pytest.raises(TraceError, match="cannot read"):
        read_trace(tmp_path / "bad.jsonl.gz")
