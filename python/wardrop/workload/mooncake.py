"""Recorded traces in Mooncake's form, as requests of the same lengths and the same sharing.

A row is `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [int, …]}`;
an id stands for one block of the prompt and everything before it, so equal leading ids are a shared
prefix. Each id becomes a fixed run of random tokens; the last block may be partial. Source of the
format: Mooncake (FAST'25) and its published traces.
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import zstandard

from wardrop.workload.turn import Tokens, Turn

BLOCK_SIZES = (16, 32, 64, 128, 256, 512, 1024)
"""Trace block sizes that are looked for."""

_ZSTD_WINDOW = 2**27


class TraceError(ValueError):
    """A trace that can not be read; the text names the file and the line."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One row: arrival in seconds from the first row, lengths in tokens, block ids."""

    arrival_s: float
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...]


def read_trace(path: Path, limit: int | None = None) -> list[TraceRow]:
    """Rows of a `.jsonl`, `.jsonl.gz` or `.jsonl.zst` file, in order of arrival.

    Args:
        path: the file.
        limit: read at most so many rows.

    Raises:
        TraceError: no such file, not a single row, or a row without the four fields.
    """
    rows: list[tuple[float, int, int, tuple[int, ...]]] = []
    try:
        for number, line in enumerate(_lines(path), 1):
            if limit is not None and len(rows) >= limit:
                break
            if line.strip():
                rows.append(_row(path, number, line))
    except (OSError, EOFError, zstandard.ZstdError, UnicodeDecodeError) as error:
        raise TraceError(f"cannot read the trace {str(path)!r}: {error}") from error
    if not rows:
        raise TraceError(f"the trace {str(path)!r} has no rows")
    rows.sort(key=lambda row: row[0])
    start_s = rows[0][0]
    return [TraceRow(row[0] - start_s, *row[1:]) for row in rows]


def turns_of_trace(
    rows: Sequence[TraceRow],
    *,
    seconds: float,
    requests_per_s: float | None = None,
    max_prompt_tokens: int = 1 << 20,
    first_token: int = 300,
    last_token: int = 7999,
    seed: int = 0,
) -> list[Turn]:
    """Requests of a trace's beginning.

    Rows that share a time stamp are spread evenly up to the next stamp (recorders write in ticks).
    Load is scaled by dividing every gap by one factor, never by repeating rows. Rows do not follow
    one another: the recorded times already hold what users waited for.

    Args:
        rows: in order of arrival.
        seconds: length of the run after scaling; later rows are left out.
        requests_per_s: mean rate to scale to, over all rows; None keeps the trace's own.
        max_prompt_tokens: longer rows are left out (a mock engine would answer them with nothing).
        first_token: smallest token id.
        last_token: largest token id.
        seed: which random tokens stand for the ids.

    Raises:
        TraceError: no block size fits the rows, or nothing is left.
    """
    block_size = _block_size(rows)
    arrivals_s = _spread(rows)
    span_s = arrivals_s[-1] if len(rows) > 1 else 0.0
    scale = 1.0
    if requests_per_s is not None and span_s > 0:
        scale = requests_per_s / (len(rows) / span_s)
    blocks: dict[int, Tokens] = {}
    turns: list[Turn] = []
    for arrival_s, row in zip(arrivals_s, rows, strict=True):
        if arrival_s / scale >= seconds:
            break
        if row.input_tokens > max_prompt_tokens:
            continue
        for number in row.hash_ids:
            if number not in blocks:
                rng = np.random.default_rng([seed, 3, number])
                blocks[number] = rng.integers(
                    first_token, last_token, size=block_size, dtype=np.uint32, endpoint=True
                )
        tokens = np.concatenate([blocks[number] for number in row.hash_ids])[: row.input_tokens]
        turns.append(Turn(len(turns), arrival_s / scale, None, tokens, row.output_tokens))
    if not turns:
        raise TraceError(
            f"no row is left of {len(rows)}: none arrives within {seconds:g} s with at most "
            f"{max_prompt_tokens} prompt tokens; give more seconds or a higher rate"
        )
    return turns


def _lines(path: Path) -> Iterator[str]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as text:
            yield from text
    elif path.suffix == ".zst":
        with path.open("rb") as raw:
            reader = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).stream_reader(raw)
            yield from io.TextIOWrapper(reader, encoding="utf-8")
    else:
        with path.open(encoding="utf-8") as text:
            yield from text


def _row(path: Path, number: int, line: str) -> tuple[float, int, int, tuple[int, ...]]:
    try:
        entry: object = json.loads(line)
        if not isinstance(entry, dict):
            raise TypeError("a row must be an object")
        row = cast(dict[str, object], entry)
        ids = cast(list[object], row["hash_ids"])
        if not isinstance(ids, list) or not ids:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError("hash_ids must be a list with at least one id")
        hash_ids = tuple(_whole(i, 0) for i in ids)
        timestamp_ms = float(cast(float, row["timestamp"]))
        return (
            timestamp_ms / 1000,
            _whole(row["input_length"], 1),
            max(1, _whole(row["output_length"], 0)),
            hash_ids,
        )
    except (ValueError, KeyError, TypeError) as error:
        what = f"field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise TraceError(
            f"{path}, line {number}: {what}; expected "
            '{"timestamp": ms, "input_length": n, "output_length": n, "hash_ids": [ids]}'
        ) from error


def _whole(value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"got {value!r}, expected a whole number of at least {least}")
    return value


def _block_size(rows: Sequence[TraceRow]) -> int:
    """The size with which every row's last id is its only partial block."""
    for size in BLOCK_SIZES:
        if all(
            (len(r.hash_ids) - 1) * size < r.input_tokens <= len(r.hash_ids) * size for r in rows
        ):
            return size
    raise TraceError(
        f"no block size of {BLOCK_SIZES} fits all rows: input_length must lie in the block of the "
        "last of hash_ids"
    )


def _spread(rows: Sequence[TraceRow]) -> list[float]:
    """Arrivals with rows of one time stamp spread evenly up to the next stamp."""
    times = [row.arrival_s for row in rows]
    spread = list(times)
    begin = 0
    while begin < len(times):
        end = begin
        while end < len(times) and times[end] == times[begin]:
            end += 1
        # The last tick is as long as the one before it.
        tick_s = (
            times[end] - times[begin]
            if end < len(times)
            else (times[begin] - times[begin - 1] if begin else 0.0)
        )
        for i in range(begin, end):
            spread[i] += tick_s * (i - begin) / (end - begin)
        begin = end
    return spread
