"""Request traces in, as arrays: Mooncake JSONL (plain, .gz, .zst), and generated ones.

Where it stands: the one reader that `resource`, `caching` and `coupled` share. A row is
`{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [int, …]}`; an id
stands for one block and everything before it. No prompts or token ids are in such a trace, and none
are kept. Source of the format: Mooncake (FAST '25).
"""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wardrop.games.errors import GameError
from wardrop.games.routing.latency import Floats, require

_LONG_WINDOW = 2**27


@dataclass(frozen=True)
class Trace:
    """Requests in order of arrival.

    Attributes:
        name: where it came from.
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
        """How many requests."""
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
        """Only the first so many requests."""
        require(requests > 0, requests, "at least one request")
        return Trace(
            self.name,
            self.arrival_s[:requests],
            self.input_tokens[:requests],
            self.output_tokens[:requests],
            self.blocks[:requests],
            self.block_tokens,
        )


@contextmanager
def _lines(path: Path) -> Generator[io.TextIOBase]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as text:
            yield text  # pyright: ignore[reportReturnType] - gzip types "rt" as IO[str]
    elif path.suffix == ".zst":
        import zstandard

        with path.open("rb") as raw:
            stream = zstandard.ZstdDecompressor(max_window_size=_LONG_WINDOW).stream_reader(raw)
            with io.TextIOWrapper(io.BufferedReader(stream), encoding="utf-8") as text:
                yield text
    else:
        with path.open(encoding="utf-8") as text:
            yield text


def read_trace(path: Path, spread_ties: bool = True, limit: int | None = None) -> Trace:
    """Read a Mooncake JSONL trace.

    Args:
        path: .jsonl, .jsonl.gz or .jsonl.zst.
        spread_ties: spread requests that share a timestamp evenly until the next one (Mooncake's
            clock ticks every 3 s, and a whole tick at once would be a burst that never was).
        limit: read at most so many rows.

    Raises:
        GameError: no file, no rows, or a row that is not as expected; names the line.
    """
    if not path.is_file():
        raise GameError(f"got {path}; expected a trace file (.jsonl, .jsonl.gz, .jsonl.zst)")
    rows: list[tuple[float, int, int, tuple[int, ...]]] = []
    with _lines(path) as text:
        for number, line in enumerate(text, 1):
            if limit is not None and len(rows) >= limit:
                break
            if line.strip():
                rows.append(_row(line, path, number))
    if not rows:
        raise GameError(f"got no rows in {path}; expected one JSON object a line")
    rows.sort(key=lambda row: row[0])
    arrival = np.array([row[0] for row in rows]) / 1e3
    arrival = arrival - arrival[0]
    return Trace(
        name=path.name,
        arrival_s=spread_over_ticks(arrival) if spread_ties else arrival,
        input_tokens=np.array([row[1] for row in rows], dtype=np.int64),
        output_tokens=np.array([max(row[2], 1) for row in rows], dtype=np.int64),
        blocks=tuple(row[3] for row in rows),
        block_tokens=_block_tokens(rows),
    )


def _row(line: str, path: Path, number: int) -> tuple[float, int, int, tuple[int, ...]]:
    try:
        row = json.loads(line)
        blocks = tuple(int(block) for block in row.get("hash_ids", ()))
        return float(row["timestamp"]), int(row["input_length"]), int(row["output_length"]), blocks
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise GameError(
            f"got a row that is no request at {path.name}:{number} ({error!r}); expected "
            '{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [ids]}'
        ) from error


def _block_tokens(rows: list[tuple[float, int, int, tuple[int, ...]]]) -> int:
    """Smallest power of two that explains every row: ceil(input / size) = number of ids."""
    seen = [(tokens, len(blocks)) for _, tokens, _, blocks in rows if blocks][:200]
    for size in (16, 32, 64, 128, 256, 512, 1024):
        if seen and sum(-(-tokens // size) == count for tokens, count in seen) > 0.9 * len(seen):
            return size
    return 512


def spread_over_ticks(arrival_s: Floats) -> Floats:
    """Equal times spread evenly up to the next distinct time; the last group over one mean tick."""
    times, start, count = np.unique(arrival_s, return_index=True, return_counts=True)
    if times.size < 2:
        return arrival_s
    widths = np.append(np.diff(times), np.diff(times).mean())
    place = np.arange(arrival_s.size) - np.repeat(start, count)
    return np.repeat(times, count) + np.repeat(widths / count, count) * place


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
    """A trace from a generated workload; same seed, same trace. Ours; needs no files."""
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
