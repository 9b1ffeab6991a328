"""Recorded traces become requests of the same lengths and the same sharing."""

from dataclasses import replace

import numpy as np
import pytest

from wardrop.traces import TraceError, TraceFile, TraceRow
from wardrop.workload import turns_of_trace

TRACE = TraceFile(
    "t.jsonl",
    (
        TraceRow(1000, 130, 5, (7, 8, 9)),
        TraceRow(1000, 128, 1, (7, 8)),
        TraceRow(1000, 65, 4, (7, 10)),
        TraceRow(4000, 192, 6, (7, 8, 11)),
        TraceRow(7000, 1, 1, (12,)),
    ),
)


def test_rows_of_one_tick_are_spread_within_it() -> None:
    turns = turns_of_trace(TRACE, seconds=100)
    assert [t.time_s for t in turns] == pytest.approx([0, 1, 2, 3, 6])


def test_equal_ids_are_equal_blocks_and_other_ids_differ() -> None:
    turns = turns_of_trace(TRACE, seconds=100)
    assert [len(t.tokens) for t in turns] == [130, 128, 65, 192, 1]
    assert np.array_equal(turns[0].tokens[:128], turns[1].tokens)
    assert np.array_equal(turns[0].tokens[:64], turns[2].tokens[:64])
    assert not np.array_equal(turns[0].tokens[128:130], turns[3].tokens[128:130])
    assert turns[1].output_tokens == 1  # a request for no tokens can not be timed


def test_load_is_scaled_by_dividing_gaps() -> None:
    own_rate = len(TRACE.rows) / 6
    double = turns_of_trace(TRACE, seconds=100, requests_per_s=2 * own_rate)
    assert [t.time_s for t in double] == pytest.approx([0, 0.5, 1, 1.5, 3])
    assert [len(t.tokens) for t in double] == [130, 128, 65, 192, 1]


def test_a_run_ends_and_long_prompts_are_left_out() -> None:
    assert len(turns_of_trace(TRACE, seconds=2.5)) == 3
    assert [len(t.tokens) for t in turns_of_trace(TRACE, seconds=9, max_prompt_tokens=128)] == [
        128,
        65,
        1,
    ]
    with pytest.raises(TraceError, match="no row is left"):
        turns_of_trace(replace(TRACE, rows=TRACE.rows[3:]), seconds=0.1, max_prompt_tokens=100)


def test_blocks_without_an_id_are_shared_with_no_other_request() -> None:
    rows = (TraceRow(0, 40, 1, (0, 1)), TraceRow(1, 40, 1, (0, 1)))
    one, two = (turn.tokens for turn in turns_of_trace(TraceFile("t", rows, 16), seconds=9))
    assert (len(one), len(two)) == (40, 40)
    assert np.array_equal(one[:32], two[:32])
    assert not np.array_equal(one[32:], two[32:])
