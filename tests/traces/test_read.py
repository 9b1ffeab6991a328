"""One reader for three formats: packed files read alike, and a bad row is named by its line."""

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest
import zstandard

from wardrop.replay.traces import workload_of
from wardrop.traces import (
    TraceError,
    TraceFile,
    TraceRow,
    implied_block_size,
    read_trace,
    spread_evenly,
)
from wardrop.workload.recorded import turns_of_trace

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
        ({**ROWS[0], "hash_ids": []}, "hash_ids: got \\[\\], expected a list of length >= 1"),
        ({**ROWS[0], "hash_ids": [2**64]}, "hash_ids: got 18446744073709551616, .* 64 bits"),
        ({**ROWS[0], "hash_ids": [-(2**63) - 1]}, "hash_ids: got -9.*, expected .* 64 bits"),
        ({**ROWS[0], "hash_ids": ["x"]}, "hash_ids: got 'x', expected .* 64 bits"),
        ({**ROWS[0], "hash_ids": [1, {}]}, r"hash_ids\[1\]: got an object, expected"),
        ({**ROWS[0], "hash_ids": 5}, "hash_ids: got 5, expected a list"),
        ({**ROWS[0], "input_length": "many"}, "input_length: got 'many', expected a number"),
        ({**ROWS[0], "input_length": 0}, "input_length: got 0, expected a whole number from 1"),
        ({**ROWS[0], "input_length": 1.5}, "input_length: got 1.5, expected a whole number"),
        ({**ROWS[0], "input_length": 2**32}, "input_length: got 4294967296, expected"),
        ({**ROWS[0], "output_length": True}, "output_length: got True, expected a number"),
        ({**ROWS[0], "delay": "x"}, "delay: got 'x', expected a number"),
        ({**ROWS[0], "delay": -1}, "delay: got -1, expected a number >= 0"),
        ({**ROWS[0], "timestamp": "now"}, "timestamp: got 'now', expected a number"),
        ({**ROWS[0], "session_id": [1]}, "session_id: got"),
        ([1], "expected an object"),
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
        (
            [{"event_type": "request_end", "request": {}}],
            "jsonl:1: request: field 'request_received_ms' is missing",
        ),
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
        (
            f"{AZURE}2023-11-16 18:17:04,many,8\n",
            "csv:2: ContextTokens: got 'many', expected a whole",
        ),
        (f"{AZURE}2023-11-16 18:17:04,1.5,8\n", "csv:2: ContextTokens: got 1.5, expected"),
        (f"{AZURE}2023-11-16 18:17:04,1\n", "csv:2: field 'GeneratedTokens' is missing"),
        (f"{AZURE}yesterday,1,1\n", "csv:2: TIMESTAMP: got 'yesterday', expected a time"),
        (f"{AZURE}2023-11-16 18:17:04+99:00,1,1\n", "csv:2: TIMESTAMP: got"),
        (f"{AZURE}2023-13-16 18:17:04,1,1\n", "csv:2: TIMESTAMP: got"),
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
    damaged = gzip.compress(b"x" * 5000)[:20] + b"\0" * 9
    for name, raw in (("t.jsonl.gz", b"no gzip"), ("t.jsonl.zst", b"no"), ("u.jsonl.gz", damaged)):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(TraceError, match="cannot read"):
            read_trace(tmp_path / name)
    for raw in (b"{", b"\xff{", b'{"hash_ids": "\xff"}'):
        (tmp_path / "t.jsonl").write_bytes(raw)
        with pytest.raises(TraceError, match=r"jsonl:1( is not JSON|: )"):
            read_trace(tmp_path / "t.jsonl")
    for depth in (5_000, 1_000_000):
        (tmp_path / "t.jsonl").write_text('{"hash_ids": [1], "x": ' + "[" * depth)
        with pytest.raises(TraceError, match="jsonl:1"):
            read_trace(tmp_path / "t.jsonl")


def test_a_line_without_an_end_is_read_up_to_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardrop.traces.read.MAX_LINE_BYTES", 100)
    path = written(tmp_path / "t.jsonl", [ROWS[0], {**ROWS[1], "note": "x" * 100}])
    with pytest.raises(TraceError, match=r"jsonl:2: got a line of more than 100 bytes"):
        read_trace(path)


def test_a_block_id_may_use_all_64_bits(tmp_path: Path) -> None:
    large = [2**63 + 1, 2**63 + 2, 2**64 - 1, -1, -(2**63), 2**62, 7]
    row = {"timestamp": 0, "input_length": 64 * len(large), "output_length": 4, "hash_ids": large}
    twin = {**row, "hash_ids": [*large[:-1], 8]}
    texts = {**row, "hash_ids": [str(block) for block in large]}
    trace = read_trace(written(tmp_path / "t.jsonl", [row, twin, texts]))
    assert trace.rows[0].hash_ids == trace.rows[2].hash_ids == tuple(large)
    first, second, third = np.split(workload_of(trace).blocks, 3)
    assert first.tolist() == third.tolist()
    assert (first[:-1] == second[:-1]).all()
    assert len(set(first.tolist()) | set(second.tolist())) == len(large) + 1
    turns = turns_of_trace(trace, seconds=10)
    assert turns[0].tokens.tolist() == turns[2].tokens.tolist()


@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_azure_times_do_not_depend_on_the_zone_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    texts = [
        "2024-03-10 06:59:59.5",  # an hour that New York skips lies between these rows
        "2024-03-10 07:00:00.009930+00:00",
        "2024-03-10 07:00:01+00:00",
        "2024-03-10T07:00:02.0099300Z",
        "2024-03-10 12:30:03.5+0530",
        "2024-03-10 03:00:04-04",
        "2024-03-10 07:00:05 UTC",
    ]
    try:
        (tmp_path / "t.csv").write_text(AZURE + "".join(f"{text},100,10\n" for text in texts))
        trace = read_trace(tmp_path / "t.csv")
    finally:
        monkeypatch.undo()
        time.tzset()
    expected = [0, 0.50993, 1.5, 2.50993, 4, 4.5, 5.5]
    assert trace.arrival_s() == pytest.approx(expected, abs=1e-6)


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
