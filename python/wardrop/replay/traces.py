"""Trace files in: Mooncake JSONL, Azure CSV, Dynamo request traces; plain, .gz or .zst.

Formats:
    Mooncake (FAST '25): `{"timestamp": ms, "input_length", "output_length", "hash_ids": [...]}`,
    and, where a trace has sessions, `"session_id"` with `"delay"` (ms after the previous turn's
    end) on later turns.
    Azure LLM inference 2023: `TIMESTAMP,ContextTokens,GeneratedTokens`; prompts share nothing.
    Dynamo request trace (`DYN_REQUEST_TRACE`): `{"event_type": "request_end", "request":
    {"request_received_ms", "output_tokens", "replay": {"trace_block_size", "input_length",
    "input_sequence_hashes"}}, "agent_context": {"session_id"}}`, each possibly below an `"event"`
    key.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import zstandard
from numpy.typing import NDArray

from wardrop.replay.workload import NOBODY, ReplayError, Workload, from_lists

_LONG_WINDOW = 2**27


@contextmanager
def _lines(path: Path) -> Generator[Iterator[str]]:
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw, "rt", encoding="utf-8") as text:
                yield iter(text)
        elif path.suffix == ".zst":
            reader = zstandard.ZstdDecompressor(max_window_size=_LONG_WINDOW).stream_reader(raw)
            yield iter(io.TextIOWrapper(reader, encoding="utf-8"))
        else:
            yield iter(io.TextIOWrapper(raw, encoding="utf-8"))


def load(
    path: str | Path, *, block_size: int | None = None, spread_ticks: bool = False, seed: int = 0
) -> Workload:
    """Read a trace, its format taken from its name and first row.

    Args:
        path: the file.
        block_size: tokens per id of a Mooncake trace; by default whatever the rows imply (512, 64,
            …).
        spread_ticks: requests that share a timestamp are spread evenly, at random, up to the next
            one (Mooncake's arrivals come in ticks of 3 s).
        seed: of that spread.

    Raises:
        ReplayError: the file is missing, empty, or no known format.
    """
    path = Path(path)
    if not path.is_file():
        raise ReplayError(f"no trace at {path}; give a .jsonl or .csv file, plain, .gz or .zst")
    if ".csv" in path.suffixes:
        workload = _azure(path)
    else:
        with _lines(path) as lines:
            rows = [
                _row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()
            ]
        if not rows:
            raise ReplayError(f"{path} has no rows")
        first = rows[0].get("event", rows[0])
        if "hash_ids" in first:
            workload = _mooncake(path.name, rows, block_size)
        elif first.get("event_type") is not None:
            workload = _dynamo(path.name, rows)
        else:
            raise ReplayError(
                f"{path}: a row has keys {sorted(rows[0])[:8]}; expected a Mooncake or Dynamo trace"
            )
    return spread(workload, seed) if spread_ticks else workload


def _row(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ReplayError(f"{path}:{number} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ReplayError(f"{path}:{number} is not a JSON object")
    return cast(dict[str, Any], row)


def spread(workload: Workload, seed: int = 0) -> Workload:
    """Spread requests that share a timestamp uniformly up to the next one.

    The last ones go over the median tick.
    """
    times = workload.arrival_ms
    ticks, which = np.unique(times, return_inverse=True)
    if ticks.size < 2:
        return workload
    width = np.append(np.diff(ticks), np.median(np.diff(ticks)))
    moved = times + np.random.default_rng(seed).random(times.size) * width[which]
    roots = workload.after == 0xFFFFFFFF
    moved[roots] = np.sort(moved[roots])
    return replace(workload, arrival_ms=moved)


def restart(workload: Workload, seed: int = 0, over_s: float = 600.0) -> Workload:
    """Start every conversation anew, uniformly over `over_s`: another draw of the same traffic.

    A conversation is what shares a first block; its own gaps stay. For traces whose conversations
    share nothing with each other and were put on one clock at random to begin with.

    Raises:
        ReplayError: the workload has sessions, whose turns have no times of their own.
    """
    if (workload.after != NOBODY).any():
        raise ReplayError("a workload with sessions starts its conversations itself")
    first = workload.blocks[workload.block_start[:-1].astype(np.int64)]
    families, family = np.unique(first, return_inverse=True)
    begin = np.full(families.size, np.inf)
    np.minimum.at(begin, family, workload.arrival_ms)
    drawn = np.random.default_rng(seed).random(families.size) * over_s * 1e3
    arrival = workload.arrival_ms - begin[family] + drawn[family]
    return _reordered(workload, arrival - arrival.min())


def _reordered(workload: Workload, arrival: NDArray[np.float64]) -> Workload:
    order = np.argsort(arrival, kind="stable")
    counts = np.diff(workload.block_start.astype(np.int64))
    starts = workload.block_start[:-1].astype(np.int64)
    rows = [workload.blocks[starts[i] : starts[i] + counts[i]] for i in order]
    block_start = np.zeros(len(workload) + 1, dtype=np.uint64)
    np.cumsum(counts[order], out=block_start[1:])
    return replace(
        workload,
        arrival_ms=arrival[order],
        input_tokens=workload.input_tokens[order],
        output_tokens=workload.output_tokens[order],
        block_start=block_start,
        blocks=np.concatenate(rows),
        think_ms=workload.think_ms[order],
    )


def implied_block_size(inputs: list[int], counts: list[int]) -> int:
    """The power of two b with ceil(input / b) = count in every row.

    Raises:
        ReplayError: no power of two from 1 to 65,536 fits; give the block size.
    """
    for shift in range(17):
        size = 1 << shift
        if all(-(-tokens // size) == count for tokens, count in zip(inputs, counts, strict=True)):
            return size
    raise ReplayError(
        "no power of two explains the numbers of hash_ids; give the trace's block size"
    )


def _mooncake(name: str, rows: list[dict[str, Any]], block_size: int | None) -> Workload:
    try:
        inputs = [int(row["input_length"]) for row in rows]
        outputs = [int(row["output_length"]) for row in rows]
        ids = [row["hash_ids"] for row in rows]
        counts = [len(row) for row in ids]
        times = [float(row.get("timestamp", 0.0)) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise ReplayError(f"{name}: a row lacks a Mooncake field: {error!r}") from error
    size = block_size or implied_block_size(inputs, counts)
    after, think = _turns(
        [row.get("session_id") for row in rows], [float(row.get("delay", 0.0)) for row in rows]
    )
    flat = np.concatenate([np.asarray(row, dtype=np.int64) for row in ids])
    arrival = _rising(np.asarray(times), after)
    return from_lists(
        name,
        arrival,
        np.asarray(inputs),
        np.asarray(outputs),
        flat,
        np.asarray(counts),
        size,
        after,
        think,
    )


def _turns(sessions: list[Any], delays: list[float]) -> tuple[np.ndarray, np.ndarray]:
    after = np.full(len(sessions), -1, dtype=np.int64)
    latest: dict[Any, int] = {}
    for i, session in enumerate(sessions):
        if session is None:
            continue
        after[i] = latest.get(session, -1)
        latest[session] = i
    return after, np.asarray(delays)


def _rising(times: np.ndarray, after: np.ndarray) -> np.ndarray:
    roots = after < 0
    if np.any(np.diff(times[roots]) < 0):
        raise ReplayError("timestamps fall; sort the trace by arrival")
    return times - times[roots].min(initial=times[0])


def _dynamo(name: str, rows: list[dict[str, Any]]) -> Workload:
    ends = [row.get("event", row) for row in rows]
    ends = [row for row in ends if row.get("event_type") == "request_end"]
    ends.sort(key=lambda row: float(row["request"]["request_received_ms"]))
    if not ends:
        raise ReplayError(f"{name}: no request_end events in this Dynamo trace")
    try:
        replays = [row["request"]["replay"] for row in ends]
        sizes = {int(replay["trace_block_size"]) for replay in replays}
        inputs = np.asarray([int(replay["input_length"]) for replay in replays])
        hashes = [[int(value) for value in replay["input_sequence_hashes"]] for replay in replays]
        outputs = np.asarray([int(row["request"].get("output_tokens") or 1) for row in ends])
        times = np.asarray([float(row["request"]["request_received_ms"]) for row in ends])
    except (KeyError, TypeError, ValueError) as error:
        raise ReplayError(f"{name}: a request_end event lacks a field: {error!r}") from error
    if len(sizes) != 1:
        raise ReplayError(f"{name}: block sizes {sorted(sizes)} in one trace; expected one")
    size = sizes.pop()
    names: dict[int, int] = {}
    flat: list[int] = []
    counts: list[int] = []
    tails = 1 << 62
    for tokens, row in zip(inputs, hashes, strict=True):
        ids = [names.setdefault(value, len(names)) for value in row]
        # Dynamo hashes whole blocks only: the started one belongs to this request alone.
        for _ in range(len(ids), -(-int(tokens) // size)):
            ids.append(tails)
            tails += 1
        flat.extend(ids)
        counts.append(len(ids))
    return from_lists(
        name, times - times[0], inputs, outputs, np.asarray(flat), np.asarray(counts), size
    )


def _azure(path: Path) -> Workload:
    with _lines(path) as lines:
        reader = csv.DictReader(lines)
        rows = list(reader)
    if not rows or not {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(rows[0]):
        raise ReplayError(f"{path}: expected columns TIMESTAMP, ContextTokens, GeneratedTokens")
    # Seven decimals of a second: datetime takes six.
    times = np.asarray(
        [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() * 1e3 for row in rows]
    )
    inputs = np.maximum(np.asarray([int(row["ContextTokens"]) for row in rows]), 1)
    outputs = np.asarray([int(row["GeneratedTokens"]) for row in rows])
    order = np.argsort(times, kind="stable")
    counts: NDArray[np.int64] = -(-inputs[order] // 64)
    ids = np.arange(int(counts.sum()))
    return from_lists(
        path.name, times[order] - times.min(), inputs[order], outputs[order], ids, counts, 64
    )
