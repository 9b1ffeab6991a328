"""One reader for three formats: packed files read alike, and a bad row is named by its line."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import zstandard

from wardrop.traces import (
    TraceError,
    TraceFile,
    TraceRow,
    implied_block_size,
    read_trace,
    spread_evenly,
)

ROWS = [
    {"timestamp": 1000, "input_length": 130, "output_length": 5, "hash_ids": [7, 8, 9]},
    {"timestamp": 1000, "input_length": 128, "output_length": 0, "hash_ids": [7, 8]},
    {"timestamp": 4000, "input_length": 65, "output_length": 4, "hash_ids": [7, 10]},
]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def written(path: Path, rows: list[object]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".gz":
        text = gzip.compress(text)
    if path.suffix == ".zst":
        text = zstandard.compress(text)
    path.write_bytes(text)
    return path


def dynamo_event(received_ms: float, tokens: int, hashes: list[int], size: int = 16) -> object:
    replay = {"trace_block_size": size, "input_length": tokens, "input_sequence_hashes": hashes}
    request = {"request_received_ms": received_ms, "output_tokens": 4, "replay": replay}
    return {"event": {"event_type": "request_end", "request": request}}


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
def test_plain_and_packed_files_read_alike(tmp_path: Path, name: str) -> None:
    trace = read_trace(written(tmp_path / name, ROWS))
    assert [row.input_tokens for row in trace.rows] == [130, 128, 65]
    assert [row.output_tokens for row in trace.rows] == [5, 1, 4]
    assert trace.rows[0].hash_ids == (7, 8, 9)
    assert trace.tokens_per_block() == 64
    assert trace.arrival_s().tolist() == [0, 0, 3]
    assert len(read_trace(tmp_path / name, limit=2).rows) == 2


def test_sessions_keep_their_names_and_delays(tmp_path: Path) -> None:
    rows = [{**ROWS[0], "session_id": "a"}, {**ROWS[1], "session_id": "a", "delay": 250}]
    del rows[1]["timestamp"]
    trace = read_trace(written(tmp_path / "t.jsonl", rows))
    assert [row.session for row in trace.rows] == ["a", "a"]
    assert trace.rows[1].delay_ms == 250
    assert trace.rows[1].timestamp_ms is None
    with pytest.raises(TraceError, match="without a timestamp"):
        trace.by_arrival()


def test_a_dynamo_trace_is_sorted_and_its_hashes_become_small_ids(tmp_path: Path) -> None:
    rows = [
        {"event": {"event_type": "request_start"}},
        dynamo_event(2000, 40, [2**64 - 1, 6]),
        dynamo_event(1000, 32, [2**64 - 1, 7]),
    ]
    trace = read_trace(written(tmp_path / "t.jsonl", rows))
    assert trace.arrival_s().tolist() == [0, 1]
    assert [row.hash_ids for row in trace.rows] == [(0, 1), (0, 2)]
    assert trace.tokens_per_block() == 16


def test_an_azure_trace_is_sorted_and_has_no_block_ids(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"{AZURE}2023-11-16 18:17:04.0319600,100,8\n2023-11-16 18:17:03.9799600,0,10\n")
    trace = read_trace(path)
    assert trace.arrival_s() == pytest.approx([0, 0.052], abs=1e-6)
    assert [row.input_tokens for row in trace.rows] == [1, 100]
    assert [row.hash_ids for row in trace.rows] == [(), ()]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"timestamp": 1, "input_length": 2, "hash_ids": [1]}, "'output_length' is missing"),
        ({**ROWS[0], "hash_ids": []}, "at least one id"),
        ({**ROWS[0], "hash_ids": [-1]}, "hash_ids .*whole numbers"),
        ({**ROWS[0], "hash_ids": 5}, "hash_ids 5; expected a list"),
        ({**ROWS[0], "input_length": "many"}, "input_length 'many'; expected a whole number"),
        ({**ROWS[0], "input_length": 0}, "at least 1"),
        ({**ROWS[0], "timestamp": "now"}, "timestamp 'now'; expected a number"),
        ({**ROWS[0], "session_id": [1]}, "session_id"),
        ([1], "not a JSON object"),
    ],
)
def test_a_bad_mooncake_row_is_named_by_its_line(
    tmp_path: Path, row: object, expected: str
) -> None:
    path = written(tmp_path / "t.jsonl", [ROWS[0], row])
    with pytest.raises(TraceError, match=rf"t\.jsonl:2.*{expected}"):
        read_trace(path)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"event_type": "request_end", "request": {}}], "jsonl:1: field 'replay' is missing"),
        ([dynamo_event(1, 16, [1]), dynamo_event(2, 16, [1], 32)], r"block sizes \[16, 32\]"),
        ([{"event_type": "request_start"}], "no request_end event"),
        ([{"a": 1}], r"jsonl:1: got a row with the keys \['a'\]"),
    ],
)
def test_a_bad_dynamo_trace_is_an_error(tmp_path: Path, rows: list[object], expected: str) -> None:
    with pytest.raises(TraceError, match=expected):
        read_trace(written(tmp_path / "t.jsonl", rows))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{AZURE}2023-11-16 18:17:04,many,8\n", "csv:2: .*expected a time"),
        (f"{AZURE}2023-11-16 18:17:04,1\n", "csv:2: .*expected a time"),
        ("a,b\n1,2\n", "columns a, b; expected TIMESTAMP"),
        (AZURE, "no rows"),
    ],
)
def test_a_bad_azure_trace_is_an_error(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(TraceError, match=expected):
        read_trace(tmp_path / "t.csv")


def test_a_missing_empty_or_broken_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no trace at"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="no rows"):
        read_trace(written(tmp_path / "t.jsonl", []))
    for name, raw in (("t.jsonl.gz", b"no gzip"), ("t.jsonl.zst", b"no"), ("u.jsonl", b"\xff{")):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(TraceError, match="cannot read"):
            read_trace(tmp_path / name)
    (tmp_path / "t.jsonl").write_text("{")
    with pytest.raises(TraceError, match="jsonl:1 is not JSON"):
        read_trace(tmp_path / "t.jsonl")


def test_the_block_size_follows_from_lengths_and_counts() -> None:
    assert implied_block_size([TraceRow(0, 700, 1, (1, 2)), TraceRow(0, 512, 1, (1,))]) == 512
    assert implied_block_size([TraceRow(0, 700, 1)]) == 64
    with pytest.raises(TraceError, match="t: no block size fits"):
        TraceFile("t", (TraceRow(0, 9_000, 1, (1,)), TraceRow(1, 9, 1, (1, 2)))).tokens_per_block()


def test_requests_of_one_tick_are_spread_until_the_next() -> None:
    spread = spread_evenly(np.array([0.0, 0.0, 0.0, 3.0, 3.0, 6.0]))
    assert spread.tolist() == [0.0, 1.0, 2.0, 3.0, 4.5, 6.0]


def test_the_recorded_traces_read_whole(shared: Path) -> None:
    trace = read_trace(shared / "traces" / "mooncake_conversation_0_30min.jsonl.gz")
    assert (len(trace.rows), trace.tokens_per_block()) == (5_719, 512)
    agents = read_trace(shared / "traces" / "claude_code_dev48.jsonl.zst", limit=100)
    assert agents.tokens_per_block() == 64
