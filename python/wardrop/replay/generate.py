"""Workloads without a trace file: seeded, so that a name and a seed say everything.

Every generator draws from `numpy.random.default_rng(seed)` and returns a `Workload`. Lengths are
tokens, times ms.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardrop.replay.workload import ReplayError, Workload, from_lists


def _poisson(rng: np.random.Generator, n: int, per_s: float) -> NDArray[np.float64]:
    if per_s <= 0:
        raise ReplayError(f"got {per_s} requests/s; expected above 0")
    return np.cumsum(rng.exponential(1e3 / per_s, n))


def _lengths(rng: np.random.Generator, n: int, mean: float, spread: float) -> NDArray[np.int64]:
    """Log-normal with this mean and coefficient of variation, at least 1.

    `spread` 0 gives the mean.
    """
    if mean < 1 or spread < 0:
        raise ReplayError(
            f"got mean length {mean} and spread {spread}; expected at least 1 and at least 0"
        )
    if spread == 0:
        return np.full(n, round(mean), dtype=np.int64)
    sigma = np.sqrt(np.log1p(spread * spread))
    return np.maximum(np.rint(rng.lognormal(np.log(mean) - sigma * sigma / 2, sigma, n)), 1).astype(
        np.int64
    )


def _own(counts: NDArray[np.int64], first: int) -> list[NDArray[np.int64]]:
    """`counts[i]` ids that nobody else has, from `first` on."""
    starts = first + np.concatenate(([0], np.cumsum(counts)[:-1]))
    return [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]


def prefixes(
    requests: int = 10_000,
    per_s: float = 10.0,
    groups: int = 200,
    zipf: float = 1.0,
    prefix: int = 2_048,
    suffix: float = 512,
    output: float = 128,
    spread: float = 0.5,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """Shared prefixes whose popularity falls as rank^−zipf.

    each prompt is one prefix and a suffix of its own.
    """
    rng = np.random.default_rng(seed)
    weight = np.arange(1, groups + 1, dtype=float) ** -zipf
    group: list[int] = rng.choice(groups, requests, p=weight / weight.sum()).tolist()
    inputs = prefix + _lengths(rng, requests, suffix, spread)
    head = prefix // block_size
    counts: NDArray[np.int64] = -(-inputs // block_size)
    tails = _own(counts - head, groups * head)
    ids = [
        np.concatenate((np.arange(g * head, (g + 1) * head), tail))
        for g, tail in zip(group, tails, strict=True)
    ]
    arrival = _poisson(rng, requests, per_s)
    outputs = _lengths(rng, requests, output, spread)
    return from_lists("prefixes", arrival, inputs, outputs, np.concatenate(ids), counts, block_size)


def agents(
    sessions: int = 500,
    per_s: float = 0.5,
    turns: float = 12,
    system: int = 4_096,
    systems: int = 4,
    grow: float = 1_500,
    output: float = 256,
    think_s: float = 4.0,
    spread: float = 0.8,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """Multi-turn agents: each prompt is a system prompt, then the last one and `grow` tokens more.

    A turn comes `think_s` (exponential) after the end of the one before.
    """
    rng = np.random.default_rng(seed)
    starts = _poisson(rng, sessions, per_s)
    rows: list[tuple[float, int, int, int, float, NDArray[np.int64]]] = []
    head = system // block_size
    next_id = systems * head
    for start in starts:
        count = 1 + rng.poisson(max(turns - 1, 0))
        kind = int(rng.integers(systems))
        chain = np.arange(kind * head, (kind + 1) * head)
        length = system
        previous = -1
        for growth in _lengths(rng, count, grow, spread):
            length += int(growth)
            # A started block is named anew by every turn: what it holds has changed.
            whole = length // block_size
            fresh = np.arange(next_id, next_id + max(whole - chain.size, 0))
            chain = np.concatenate((chain, fresh))
            next_id += fresh.size
            tail = np.asarray([next_id] if length % block_size else [], dtype=np.int64)
            next_id += tail.size
            think = float(rng.exponential(think_s * 1e3)) if previous >= 0 else 0.0
            rows.append((start, length, previous, len(rows), think, np.concatenate((chain, tail))))
            previous = len(rows) - 1
    outputs = _lengths(rng, len(rows), output, spread)
    return from_lists(
        "agents",
        np.asarray([row[0] for row in rows]),
        np.asarray([row[1] for row in rows]),
        outputs,
        np.concatenate([row[5] for row in rows]),
        np.asarray([row[5].size for row in rows]),
        block_size,
        np.asarray([row[2] for row in rows]),
        np.asarray([row[4] for row in rows]),
    )


def bursts(
    factor: float = 8.0, every_s: float = 60.0, for_s: float = 6.0, **prefix: Any
) -> Workload:
    """`prefixes` whose rate is `factor` times higher for `for_s` of every `every_s`.

    the mean rate stays.
    """
    base = prefixes(**prefix)
    mean = 1 + (factor - 1) * for_s / every_s
    # The operational clock of a time-varying Poisson process: invert the integrated rate.
    edges = np.arange(0.0, base.arrival_ms[-1] * 2 / 1e3 + every_s, every_s)
    times = np.sort(np.concatenate((edges, edges + for_s)))
    rate = np.where(np.arange(times.size) % 2 == 0, factor, 1.0) / mean
    clock = np.concatenate(([0.0], np.cumsum(np.diff(times) * rate[:-1])))
    return replace(
        base, name="bursts", arrival_ms=np.interp(base.arrival_ms / 1e3, clock, times) * 1e3
    )


def phases(steps: tuple[float, ...] = (0.5, 1.5, 3.0, 1.0), **prefix: Any) -> Workload:
    """`prefixes` at rates that move through `steps` (factors of `per_s`), equally many in each."""
    base = prefixes(**prefix)
    gaps = np.diff(base.arrival_ms, prepend=0.0)
    factor = np.repeat(np.asarray(steps, float), -(-len(base) // len(steps)))[: len(base)]
    return replace(base, name="phases", arrival_ms=np.cumsum(gaps / factor))


def paper(
    requests: int = 5_000,
    templates: int = 5,
    prompt: int = 128,
    output: float = 128,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """The paper's load.

    five templates of 128 tokens. Run it in a closed loop (`Fleet.concurrency`).
    """
    rng = np.random.default_rng(seed)
    blocks = -(-prompt // block_size)
    template = rng.integers(templates, size=requests)
    ids = (template[:, None] * blocks + np.arange(blocks)).ravel()
    return from_lists(
        "paper",
        np.zeros(requests),
        np.full(requests, prompt),
        _lengths(rng, requests, output, 0.0),
        ids,
        np.full(requests, blocks),
        block_size,
    )


GENERATORS: dict[str, Callable[..., Workload]] = {
    "prefixes": prefixes,
    "agents": agents,
    "bursts": bursts,
    "phases": phases,
    "paper": paper,
}


def generate(text: str, seed: int = 0) -> Workload:
    """A workload by `name` or `name(parameter=value,…)`, values in JSON.

    Raises:
        ReplayError: no such generator or parameter.
    """
    name, bracket, rest = text.partition("(")
    if name not in GENERATORS:
        raise ReplayError(f"got generator {name!r}; expected one of {', '.join(GENERATORS)}")
    fields: dict[str, Any] = {}
    if bracket:
        for pair in filter(None, rest.removesuffix(")").split(",")):
            key, _, value = pair.partition("=")
            try:
                fields[key.strip()] = json.loads(value)
            except json.JSONDecodeError as error:
                raise ReplayError(f"got {pair!r} in {text!r}; expected parameter=number") from error
    try:
        return GENERATORS[name](**{"seed": seed, **fields})
    except TypeError as error:
        raise ReplayError(f"{text}: {error}") from error


def mooncake_rows(workload: Workload) -> list[str]:
    """The workload as Mooncake JSONL rows (open loop only), for other simulators.

    Raises:
        ReplayError: it has sessions, which the plain format cannot say.
    """
    if (workload.after != 0xFFFFFFFF).any():
        raise ReplayError("a workload with sessions has no plain Mooncake form")
    rows: list[str] = []
    for i in range(len(workload)):
        ids = workload.blocks[int(workload.block_start[i]) : int(workload.block_start[i + 1])]
        row = {
            "timestamp": float(workload.arrival_ms[i]),
            "input_length": int(workload.input_tokens[i]),
            "output_length": int(workload.output_tokens[i]),
            "hash_ids": ids.tolist(),
        }
        rows.append(json.dumps(row, separators=(",", ":")))
    return rows
