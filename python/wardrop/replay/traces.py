"""Recorded traces as workloads, and other arrival times for the same requests.

Where it stands: between `wardrop.traces`, which reads the files, and the simulator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wardrop.replay.workload import NO_PREDECESSOR, ReplayError, Workload, from_lists
from wardrop.traces import TraceError, TraceFile, TraceRow, read_trace

_FIRST_OWN_ID = 1 << 62
"""Ids from here on name blocks that no other request shares. Ids of a trace stay below it."""


def load(
    path: str | Path,
    *,
    block_size: int | None = None,
    spread_ticks: bool = False,
    seed: int = 0,
    model: str | None = None,
) -> Workload:
    """Read a trace; `wardrop.traces` names the formats.

    Args:
        path: the file, plain, .gz or .zst.
        block_size: tokens per block id; by default what the file states or its rows imply.
        spread_ticks: whether requests that share a timestamp are spread at random up to the next
            timestamp (Mooncake's arrivals come in ticks of 3 s).
        seed: seed of the spread.
        model: model whose decision records are read; None where the records hold one model.

    Raises:
        TraceError: the file is missing, empty, of no known format, or has a bad row.
    """
    workload = workload_of(read_trace(path, model=model), block_size)
    return spread(workload, seed) if spread_ticks else workload


def workload_of(trace: TraceFile, block_size: int | None = None) -> Workload:
    """The rows of a trace as columns. O(rows + blocks · log blocks).

    A prompt's blocks without an id become blocks of its own.

    Args:
        trace: rows whose timestamps do not fall; a missing timestamp counts as 0.
        block_size: tokens per block id; by default what the file states or its rows imply.

    Raises:
        TraceError: timestamps fall, or no block size explains the rows.
    """
    rows = trace.rows
    size = block_size or trace.tokens_per_block()
    after = _predecessors(rows)
    inputs = np.asarray([row.input_tokens for row in rows])
    small = _small_ids(rows)
    ids: list[int] = []
    counts: list[int] = []
    own_id = _FIRST_OWN_ID
    for row in rows:
        own = max(-(-row.input_tokens // size) - len(row.hash_ids), 0)
        ids.extend([small[block] for block in row.hash_ids] if small else row.hash_ids)
        ids.extend(range(own_id, own_id + own))
        own_id += own
        counts.append(len(row.hash_ids) + own)
    return from_lists(
        trace.name,
        _arrivals_ms(trace, after),
        inputs,
        np.asarray([row.output_tokens for row in rows]),
        np.asarray(ids, dtype=np.int64),
        np.asarray(counts),
        size,
        after,
        np.asarray([row.delay_ms for row in rows]),
    )


def _small_ids(rows: Sequence[TraceRow]) -> dict[int, int]:
    """A small id for each block id, where one of them is negative or too large for the arrays.

    An id is a name: hashes use all 64 bits, signed or unsigned. Empty where every id fits as it is.
    """
    low = min((min(row.hash_ids) for row in rows if row.hash_ids), default=0)
    high = max((max(row.hash_ids) for row in rows if row.hash_ids), default=0)
    if low >= 0 and high < _FIRST_OWN_ID:
        return {}
    every = sorted({block for row in rows for block in row.hash_ids})
    return {block: number for number, block in enumerate(every)}


def _predecessors(rows: Sequence[TraceRow]) -> NDArray[np.int64]:
    """(rows,) index of the previous turn of the same session, or −1."""
    after = np.full(len(rows), -1, dtype=np.int64)
    latest: dict[str | int, int] = {}
    for i, row in enumerate(rows):
        if row.session is not None:
            after[i] = latest.get(row.session, -1)
            latest[row.session] = i
    return after


def _arrivals_ms(trace: TraceFile, after: NDArray[np.int64]) -> NDArray[np.float64]:
    """(rows,) ms after the first arrival that waits for no other request."""
    times = np.asarray([row.timestamp_ms or 0.0 for row in trace.rows])
    roots = times[after < 0]
    if np.any(np.diff(roots) < 0):
        raise TraceError(f"{trace.name}: timestamps fall; expected rows sorted by timestamp")
    return times - roots.min(initial=times[0])


def spread(workload: Workload, seed: int = 0) -> Workload:
    """Spread requests that share a timestamp uniformly at random up to the next timestamp.

    Requests of the last timestamp are spread over the median distance between timestamps.
    """
    times = workload.arrival_ms
    ticks, which = np.unique(times, return_inverse=True)
    if ticks.size < 2:
        return workload
    width = np.append(np.diff(ticks), np.median(np.diff(ticks)))
    moved = times + np.random.default_rng(seed).random(times.size) * width[which]
    roots = workload.after == NO_PREDECESSOR
    moved[roots] = np.sort(moved[roots])
    return replace(workload, arrival_ms=moved)


def restart(workload: Workload, seed: int = 0, over_s: float = 600.0) -> Workload:
    """Start every conversation at a new time: another draw of the same traffic.

    Requests with the same first block are one conversation and keep their distances. The result is
    fair only for a trace whose conversations share no blocks and start at random times.

    Args:
        workload: requests without sessions.
        seed: seed of the new start times.
        over_s: start times are uniform over this many seconds.

    Raises:
        ReplayError: the workload has sessions, whose later turns have no times of their own.
    """
    if (workload.after != NO_PREDECESSOR).any():
        raise ReplayError("got a workload with sessions; expected an arrival time of every request")
    first = workload.blocks[workload.block_start[:-1].astype(np.int64)]
    families, family = np.unique(first, return_inverse=True)
    begin = np.full(families.size, np.inf)
    np.minimum.at(begin, family, workload.arrival_ms)
    drawn = np.random.default_rng(seed).random(families.size) * over_s * 1e3
    arrival = workload.arrival_ms - begin[family] + drawn[family]
    return _reordered(workload, arrival - arrival.min())


def redraw(workload: Workload, seed: int = 0, block: int = 50) -> Workload:
    """Another draw of the arrivals: gaps change places within blocks of consecutive arrivals.

    The order of the requests, the mean rate and its slow changes stay. Seed 0 changes nothing.
    Later turns of sessions follow their earlier turns, as before.

    Args:
        workload: the requests.
        seed: seed of the new order of the gaps.
        block: consecutive arrivals whose gaps change places, at least 2.
    """
    roots = np.flatnonzero(workload.after == NO_PREDECESSOR)
    if seed == 0 or roots.size < 3:
        return workload
    rng = np.random.default_rng(seed)
    times = workload.arrival_ms[roots]
    gaps = np.diff(times)
    for start in range(0, gaps.size, block):
        rng.shuffle(gaps[start : start + block])
    arrival = workload.arrival_ms.copy()
    arrival[roots] = times[0] + np.concatenate(([0.0], np.cumsum(gaps)))
    return replace(workload, arrival_ms=arrival)


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
