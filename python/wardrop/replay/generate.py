"""Generated workloads: a name, parameters and a seed determine every request.

Every generator draws from `numpy.random.default_rng(seed)` and returns a `Workload`. Lengths are in
tokens, times in ms.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardrop.calls import parse_call
from wardrop.replay.draws import lengths, own, poisson
from wardrop.replay.kinds import agent_loops, crowds, documents, support, tenants
from wardrop.replay.workload import NO_PREDECESSOR, ReplayError, Workload, from_lists

_WHOLE = "a whole number"
_NUMBERS = "a number or a list of numbers"


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
    """Shared prefixes: each prompt is one of `groups` prefixes and a suffix of its own.

    The probability of the prefix of rank k is proportional to k^−zipf.

    Args:
        requests: number of requests.
        per_s: mean arrivals per second, a Poisson process.
        groups: number of prefixes.
        zipf: exponent of the popularity; 0 is uniform.
        prefix: tokens of a prefix.
        suffix: mean tokens of a suffix.
        output: mean tokens of an answer.
        spread: coefficient of variation of suffix and answer lengths, which are log-normal.
        block_size: tokens per block.
        seed: seed of all draws.
    """
    rng = np.random.default_rng(seed)
    weight = np.arange(1, groups + 1, dtype=float) ** -zipf
    group: list[int] = rng.choice(groups, requests, p=weight / weight.sum()).tolist()
    inputs = prefix + lengths(rng, requests, suffix, spread)
    head = prefix // block_size
    counts: NDArray[np.int64] = -(-inputs // block_size)
    tails = own(counts - head, groups * head)
    ids = [
        np.concatenate((np.arange(g * head, (g + 1) * head), tail))
        for g, tail in zip(group, tails, strict=True)
    ]
    arrival = poisson(rng, requests, per_s)
    outputs = lengths(rng, requests, output, spread)
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
    """Multi-turn agents: each prompt is the session's previous prompt and `grow` tokens more.

    Args:
        sessions: number of sessions.
        per_s: mean session starts per second, a Poisson process.
        turns: mean number of turns of a session.
        system: tokens of the system prompt, with which a session begins.
        systems: number of system prompts; sessions choose uniformly.
        grow: mean tokens that a turn adds.
        output: mean tokens of an answer.
        think_s: mean pause before the next turn, exponential, counted from the end of the answer.
        spread: coefficient of variation of the lengths, which are log-normal.
        block_size: tokens per block.
        seed: seed of all draws.
    """
    rng = np.random.default_rng(seed)
    starts = poisson(rng, sessions, per_s)
    rows: list[tuple[float, int, int, int, float, NDArray[np.int64]]] = []
    head = system // block_size
    next_id = systems * head
    for start in starts:
        count = 1 + rng.poisson(max(turns - 1, 0))
        kind = int(rng.integers(systems))
        chain = np.arange(kind * head, (kind + 1) * head)
        length = system
        previous = -1
        for growth in lengths(rng, count, grow, spread):
            length += int(growth)
            # A partial last block gets a new id in every turn, because its content changes.
            whole = length // block_size
            fresh = np.arange(next_id, next_id + max(whole - chain.size, 0))
            chain = np.concatenate((chain, fresh))
            next_id += fresh.size
            tail = np.asarray([next_id] if length % block_size else [], dtype=np.int64)
            next_id += tail.size
            think = float(rng.exponential(think_s * 1e3)) if previous >= 0 else 0.0
            rows.append((start, length, previous, len(rows), think, np.concatenate((chain, tail))))
            previous = len(rows) - 1
    outputs = lengths(rng, len(rows), output, spread)
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
    """`prefixes` in bursts: `factor` times the rate for `for_s` of every `every_s` seconds.

    The mean rate stays `per_s`. Further parameters are those of `prefixes`.
    """
    base = prefixes(**prefix)
    mean = 1 + (factor - 1) * for_s / every_s
    # A time-varying Poisson process: invert the integrated rate.
    edges = np.arange(0.0, base.arrival_ms[-1] * 2 / 1e3 + every_s, every_s)
    times = np.sort(np.concatenate((edges, edges + for_s)))
    rate = np.where(np.arange(times.size) % 2 == 0, factor, 1.0) / mean
    clock = np.concatenate(([0.0], np.cumsum(np.diff(times) * rate[:-1])))
    return replace(
        base, name="bursts", arrival_ms=np.interp(base.arrival_ms / 1e3, clock, times) * 1e3
    )


def phases(steps: tuple[float, ...] = (0.5, 1.5, 3.0, 1.0), **prefix: Any) -> Workload:
    """`prefixes` whose rate moves through `steps`, with equally many requests in each.

    A step is a factor of `per_s`. Further parameters are those of `prefixes`.
    """
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
    """The load of the paper: five prompts of 128 tokens.

    All requests arrive at time 0; run them in a closed loop (`Fleet.concurrency`).
    """
    rng = np.random.default_rng(seed)
    blocks = -(-prompt // block_size)
    template = rng.integers(templates, size=requests)
    ids = (template[:, None] * blocks + np.arange(blocks)).ravel()
    return from_lists(
        "paper",
        np.zeros(requests),
        np.full(requests, prompt),
        lengths(rng, requests, output, 0.0),
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
    "agent_loops": agent_loops,
    "support": support,
    "documents": documents,
    "crowds": crowds,
    "tenants": tenants,
}


def generate(text: str, seed: int = 0) -> Workload:
    """A workload by `NAME` or `NAME(parameter=value,…)`; `wardrop.calls` gives the grammar.

    Args:
        text: a name of `GENERATORS`, with parameters of that generator.
        seed: seed of all draws, unless the text gives one.

    Raises:
        CallError: the text does not follow the grammar.
        ReplayError: no such generator or parameter, or a value of the wrong type or out of range.
    """
    call = parse_call(text)
    if call.name not in GENERATORS:
        raise ReplayError(f"got generator {call.name!r}; expected one of {', '.join(GENERATORS)}")
    types = _parameter_types(GENERATORS[call.name])
    for name, value in call.parameters.items():
        if name not in types:
            raise ReplayError(
                f"{call.name}: got parameter {name!r}; expected one of {', '.join(types)}"
            )
        expected = types[name]
        numbers = value if expected == _NUMBERS and isinstance(value, list) and value else [value]
        is_whole = all(isinstance(number, int) for number in numbers)
        is_number = all(
            isinstance(number, int | float) and not isinstance(number, bool) for number in numbers
        )
        if not is_number or (expected == _WHOLE and not is_whole):
            raise ReplayError(f"{call.name}: got {name}={value!r}; expected {expected}")
    try:
        return GENERATORS[call.name](**{"seed": seed, **call.parameters})
    except ReplayError:
        raise
    except (ValueError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise ReplayError(f"{text}: a value is out of range: {error}") from error


def _parameter_types(generator: Callable[..., Workload]) -> dict[str, str]:
    """The parameters that a generator takes, each with what it expects, in words."""
    words = {"int": _WHOLE, "float": "a number"}
    types: dict[str, str] = {}
    for name, parameter in inspect.signature(generator).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            types |= _parameter_types(prefixes)
        else:
            types[name] = words.get(str(parameter.annotation), _NUMBERS)
    return types


def mooncake_rows(workload: Workload) -> list[str]:
    """The workload as rows of a Mooncake trace, for other simulators.

    Raises:
        ReplayError: the workload has sessions, which the plain format cannot express.
    """
    if (workload.after != NO_PREDECESSOR).any():
        raise ReplayError(
            "got a workload with sessions; expected requests with arrival times of their own"
        )
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
