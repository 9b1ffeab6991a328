"""Request traces as arrays, recorded or generated.

Where it stands: between `wardrop.traces`, which reads the files, and the games `resource`,
`caching` and `coupled`. A trace holds no prompts and no token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wardrop.games.routing.latency import Floats, require
from wardrop.traces import read_trace as read_rows
from wardrop.traces import spread_evenly


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival.

    Attributes:
        name: name of the file or generator.
        arrival_s: (requests,) seconds from the first arrival, non-decreasing.
        input_tokens: (requests,) ISL.
        output_tokens: (requests,) OSL, ≥ 1.
        blocks: per request, its prefix block ids; empty tuples where the trace has none.
        block_tokens: tokens of a block.
    """

    name: str
    arrival_s: Floats
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    blocks: tuple[tuple[int, ...], ...]
    block_tokens: int

    @property
    def requests(self) -> int:
        """Number of requests."""
        return self.arrival_s.size

    @property
    def span_s(self) -> float:
        """Seconds from the first to the last arrival; at least one mean gap."""
        return max(float(self.arrival_s[-1]), 1e-9)

    def faster(self, factor: float) -> Trace:
        """The same requests with all gaps divided by `factor`: load scaled, rows not copied."""
        require(factor > 0, factor, "a speed factor > 0")
        return replace(self, arrival_s=self.arrival_s / factor)

    def first(self, requests: int) -> Trace:
        """The first `requests` requests only."""
        require(requests > 0, requests, "at least one request")
        return Trace(
            self.name,
            self.arrival_s[:requests],
            self.input_tokens[:requests],
            self.output_tokens[:requests],
            self.blocks[:requests],
            self.block_tokens,
        )


def read_trace(path: Path, spread_ties: bool = True, limit: int | None = None) -> Trace:
    """Read a recorded trace; `wardrop.traces` names the formats.

    Args:
        path: the file, plain, .gz or .zst.
        spread_ties: spread requests that share a timestamp evenly until the next one. Mooncake's
            clock ticks every 3 s, and a whole tick at once would be a burst that never was.
        limit: read at most this many rows.

    Raises:
        TraceError: no file, no rows, or a bad row; the text names the line.
    """
    file = read_rows(path, limit=limit).by_arrival()
    arrival_s = file.arrival_s()
    return Trace(
        name=file.name,
        arrival_s=spread_evenly(arrival_s) if spread_ties else arrival_s,
        input_tokens=np.array([row.input_tokens for row in file.rows], dtype=np.int64),
        output_tokens=np.array([row.output_tokens for row in file.rows], dtype=np.int64),
        blocks=tuple(row.hash_ids for row in file.rows),
        block_tokens=file.tokens_per_block(),
    )


@dataclass(frozen=True)
class Workload:
    """A generated workload: Poisson arrivals, log-normal lengths, a shared prefix per family.

    Attributes:
        rate_rps: requests per second.
        seconds: length of the arrivals.
        input_mean: mean ISL, tokens.
        output_mean: mean OSL, tokens.
        spread: σ of the underlying normals; 0 = constant lengths.
        families: prompt families, each with a shared prefix of half the mean ISL; Zipf popularity.
        burst: ≥ 1; arrivals come in two alternating rates with this ratio, 30 s each.
    """

    rate_rps: float
    seconds: float
    input_mean: float = 2_000
    output_mean: float = 250
    spread: float = 0.6
    families: int = 20
    burst: float = 1.0


def generate_trace(workload: Workload, seed: int) -> Trace:
    """A trace of a generated workload; equal seeds give equal traces. Needs no files. Ours [O]."""
    require(workload.rate_rps > 0 and workload.seconds > 0, workload, "rate and seconds > 0")
    generator = np.random.default_rng(seed)
    count = max(1, int(workload.rate_rps * workload.seconds))
    ticks = np.sort(generator.uniform(0.0, workload.seconds, count))
    arrival = _modulate(ticks, workload)
    inputs = _lengths(generator, workload.input_mean, workload.spread, count)
    outputs = _lengths(generator, workload.output_mean, workload.spread, count)
    weights = 1.0 / np.arange(1, workload.families + 1)
    family = generator.choice(workload.families, count, p=weights / weights.sum())
    shared = max(1, int(workload.input_mean / 2) // 64)
    blocks = tuple(
        _family_blocks(int(f), -(-int(tokens) // 64), shared, i)
        for i, (f, tokens) in enumerate(zip(family, inputs, strict=True))
    )
    return Trace(f"generated-{seed}", arrival - arrival[0], inputs, outputs, blocks, 64)


def _modulate(uniform: Floats, workload: Workload) -> Floats:
    """Map uniform times so that odd half-minutes are `burst` times as dense as even ones."""
    if workload.burst <= 1.0:
        return uniform
    edges = np.arange(0.0, workload.seconds + 30.0, 30.0)
    weight = np.where(np.arange(edges.size - 1) % 2 == 1, workload.burst, 1.0)
    mass = np.concatenate([[0.0], np.cumsum(weight)])
    mapped: Floats = np.interp(uniform / workload.seconds * float(mass[-1]), mass, edges)
    return mapped


def _lengths(
    generator: np.random.Generator, mean: float, spread: float, count: int
) -> NDArray[np.int64]:
    raw = generator.lognormal(np.log(mean) - 0.5 * spread**2, spread, count)
    return np.maximum(raw, 1.0).astype(np.int64)


def _family_blocks(family: int, total: int, shared: int, request: int) -> tuple[int, ...]:
    prefix = tuple(family * 1_000_000 + i for i in range(min(shared, total)))
    return prefix + tuple(10**12 + request * 100_000 + i for i in range(max(total - shared, 0)))
