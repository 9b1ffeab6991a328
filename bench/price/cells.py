"""The cells of the comparison: fleets, traces and loads."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from wardrop.replay import Engine, Fleet, Policy, Workload, load, load_timing, simulate, spread
from wardrop.replay.generate import generate
from wardrop.replay.workload import from_lists

SHARED = Path(os.environ.get("WARDROP_SHARED", "../shared"))
KNEES = Path(__file__).with_name("knees.json")
YARDSTICK = "sticky(min_share=0.3)"
"""The rule whose TTFT says where a fleet's knee is: the prototype's best single static rule."""
KNEE_TTFT = 3.0
"""A fleet is at its knee where the yardstick's mean TTFT is this many times that of an idle one."""
YARDSTICKS = ("dynamo", "sticky", "lmetric")
"""Rules whose best TTFT says where the knee of a kind of traffic is: no single one serves all."""
KINDS = {
    "agent_loops(sessions=600,max_calls=10)": 4096,
    "support(requests=4000)": 4096,
    "documents(count=300)": 4096,
    "crowds(requests=4000)": 4096,
    "tenants(requests=4000)": 4096,
}
"""Kinds of generated traffic, and KV blocks of 64 tokens per worker."""


@dataclass(frozen=True)
class Family:
    """A trace on a fleet, at any load.

    Attributes:
        trace: `conversation`, `claude_code` or a call of a generator in `KINDS`.
        shape: `aggregated`, `split` (half and half) or `unequal` (a quarter at half speed).
        workers: number of workers.
        num_blocks: KV blocks of 64 tokens per worker.
    """

    trace: str
    shape: str
    workers: int
    num_blocks: int

    def fleet(self, rate: float) -> Fleet:
        """The fleet at the B200 timing of the 70B model; gaps are divided by `rate`."""
        timing = load_timing(SHARED / "timing" / "llama70b_tp4_b200.npz")
        engine = Engine(timing=timing, num_blocks=self.num_blocks)
        if self.shape == "split":
            half = self.workers // 2
            return Fleet.split(half, self.workers - half, engine=engine, rate=rate)
        slow = self.workers // 4 if self.shape == "unequal" else 0
        speeds = (1.0,) * (self.workers - slow) + (0.5,) * slow
        return Fleet(workers=self.workers, engine=engine, speeds=speeds, rate=rate)

    @property
    def is_kind(self) -> bool:
        """Whether the traffic is generated."""
        return self.trace in KINDS

    def knee(self) -> float:
        """Rate at the knee, by bisection on the yardstick's mean TTFT; within 5 %."""

        def ttft_s(rate: float) -> float:
            rules = YARDSTICKS if self.is_kind else (YARDSTICK,)
            drawn, fleet = workload(self.trace, 0), self.fleet(rate)
            results = [simulate(drawn, fleet, Policy.parse(rule)) for rule in rules]
            return min(result.summary()["ttft_mean_s"] for result in results)

        limit_s = KNEE_TTFT * ttft_s(0.05 * self.workers)
        low, high = 0.05 * self.workers, 3.0 * self.workers
        while high / low > 1.05:
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if ttft_s(middle) > limit_s else (middle, high)
        return round(low, 2)


@dataclass(frozen=True)
class Cell:
    """A family at a share of its knee's rate."""

    family: Family
    load: float

    @property
    def place(self) -> str:
        """`below`, `knee` or `over`: the load against the knee."""
        return "below" if self.load < 1 else "knee" if self.load == 1 else "over"

    @property
    def name(self) -> str:
        """Name of the cell, in one word."""
        f = self.family
        return f"{f.trace}/{f.shape}/{f.workers}/{f.num_blocks}/{self.load:g}"

    @property
    def kind(self) -> str:
        """The trace, or the name of the generator."""
        return self.family.trace.partition("(")[0]

    def fleet(self) -> Fleet:
        """The fleet at this load."""
        return self.family.fleet(self.load * knees()[self.family])


def families() -> list[Family]:
    """All families, those with 8 workers first."""
    caches = {"conversation": (4096, 16384), "claude_code": (8192, 32768)}
    rows: list[Family] = []
    for workers in (8, 32):
        rows += [
            Family(trace, "aggregated", workers, blocks)
            for trace, sizes in caches.items()
            for blocks in sizes
        ]
        rows += [
            Family(trace, shape, workers, 16384)
            for shape in ("split", "unequal")
            for trace in caches
        ]
    return [*rows, *(Family(kind, "aggregated", 8, blocks) for kind, blocks in KINDS.items())]


def loads(family: Family) -> tuple[float, ...]:
    """Shares of the knee's rate at which a family is run."""
    if family.is_kind:
        return (0.5, 1.0, 1.3)
    return (0.3, 0.7, 1.0, 1.3) if family.workers == 8 else (0.3, 1.0, 1.3)


def cells() -> list[Cell]:
    """All cells, from 30 % of the knee to beyond the knee."""
    return [Cell(family, share) for family in families() for share in loads(family)]


@cache
def knees() -> dict[Family, float]:
    """The families' knees, as `python -m bench.price knees` measured them."""
    rows = json.loads(KNEES.read_text(encoding="utf-8"))
    return {Family(**row["family"]): row["rate"] for row in rows}


@cache
def trace(name: str) -> Workload:
    """A recorded trace."""
    files = {
        "conversation": "mooncake_conversation_0_30min.jsonl.gz",
        "claude_code": "claude_code_dev48.jsonl.zst",
    }
    return load(SHARED / "traces" / files[name])


@cache
def workload(name: str, seed: int) -> Workload:
    """Another draw of the trace: what chance decided when it was made is drawn again.

    `conversation` comes in ticks of three seconds, which are spread anew. `claude_code` is 48
    conversations that start at uniform times over 600 s, drawn anew; seed 0 is as recorded. A
    generator draws every request anew.
    """
    if name in KINDS:
        return generate(name, seed=seed)
    if name == "conversation":
        return spread(trace(name), seed)
    return trace(name) if seed == 0 else restarted(trace(name), seed, 600.0)


def restarted(recorded: Workload, seed: int, over_s: float) -> Workload:
    """Conversations (requests with one first block) start at new times, uniform in `over_s`."""
    first = recorded.blocks[recorded.block_start[:-1].astype(np.int64)]
    _, conversation = np.unique(first, return_inverse=True)
    count = int(conversation.max()) + 1
    start = np.full(count, np.inf)
    np.minimum.at(start, conversation, recorded.arrival_ms)
    again = np.random.default_rng(seed).uniform(0, over_s * 1e3, count)
    moved = recorded.arrival_ms + (again - start)[conversation]
    order = np.argsort(moved, kind="stable")
    start_of = recorded.block_start.astype(np.int64)
    sizes = np.diff(start_of)
    made = from_lists(
        recorded.name,
        moved[order] - moved.min(),
        recorded.input_tokens[order].astype(np.int64),
        recorded.output_tokens[order].astype(np.int64),
        np.concatenate(
            [recorded.blocks[start_of[i] : start_of[i + 1]] for i in order], dtype=np.int64
        ),
        sizes[order],
        recorded.block_size,
    )
    return replace(made, name=f"{recorded.name}, restarted {seed}")
