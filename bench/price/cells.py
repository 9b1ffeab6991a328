"""What is judged: fleets, traces, loads; and who is judged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wardrop.replay import Engine, Fleet, Workload, load, load_timing, spread

SHARED = Path(os.environ.get("WARDROP_SHARED", "../shared"))

STATIC = [
    "round_robin",
    "least_loaded",
    "power_of_two",
    "lmetric",
    "dynamo",
    *(f"dynamo(prefill_load_scale={scale})" for scale in (0.5, 2, 4, 8)),
    "dynamo(router_temperature=0.2)",
    "two_tier",
    "two_tier(match_share=0.7)",
    "sticky",
    "sticky(keep_share=0.6,min_share=0.3)",
    "sticky(keep_share=0.9,min_share=0.3)",
    "sticky(min_share=0.1)",
    "chwbl",
    "chwbl(load_factor=2.0)",
]
"""Every static rule, default and grid: the best of them per cell and metric is the bar."""

OURS = [
    "toll",
    "toll(ttft=0,e2e=1)",
    "toll(ttft=0,goodput=1)",
    "toll(ttft=0,itl=1)",
    "toll+queue(kappa=0)",
    "toll+queue(kappa=10)",
    "toll+queue(kappa=30)",
    "dynamo+queue(kappa=10)",
]


@dataclass(frozen=True)
class Cell:
    """One setting: a trace at a rate on a fleet.

    Attributes:
        trace: `conversation` or `claude_code`.
        shape: `aggregated`, `split` or `unequal`.
        workers: in all.
        num_blocks: KV blocks of 64 tokens per worker.
        rate: the trace's gaps are divided by it.
        place: `below` the fleet's knee, at the `knee`, or `over` it.
    """

    trace: str
    shape: str
    workers: int
    num_blocks: int
    rate: float
    place: str

    def fleet(self) -> Fleet:
        """The fleet, with the 70B's measured B200 timing."""
        timing = load_timing(SHARED / "timing" / "llama70b_tp4_b200.npz")
        engine = Engine(timing=timing, num_blocks=self.num_blocks)
        if self.shape == "split":
            half = self.workers // 2
            return Fleet.split(half, self.workers - half, engine=engine, rate=self.rate)
        slow = self.workers // 4 if self.shape == "unequal" else 0
        speeds = (1.0,) * (self.workers - slow) + (0.5,) * slow
        return Fleet(workers=self.workers, engine=engine, speeds=speeds, rate=self.rate)


def cells() -> list[Cell]:
    """All settings, 8 workers first."""
    rows: list[Cell] = []
    for blocks in (4096, 16384):
        rates = ((1.5, "below"), (4.0, "knee"), (5.0, "over"), (6.0, "over"))
        rows += [Cell("conversation", "aggregated", 8, blocks, r, place) for r, place in rates]
    for blocks in (8192, 32768):
        rates = ((3.0, "below"), (8.0, "knee"), (12.0, "over"))
        rows += [Cell("claude_code", "aggregated", 8, blocks, r, place) for r, place in rates]
    for shape, rates in (("split", (2.0, 4.0)), ("unequal", (3.0, 4.5))):
        rows += [Cell("conversation", shape, 8, 16384, r, "knee") for r in rates]
        rows += [Cell("claude_code", shape, 8, 16384, 6.0, "knee")]
    rows += [
        Cell("conversation", "aggregated", 32, 8192, r, p) for r, p in ((16, "knee"), (20, "over"))
    ]
    rows += [
        Cell("claude_code", "aggregated", 32, 16384, r, p) for r, p in ((24, "knee"), (36, "over"))
    ]
    return rows


@cache
def trace(name: str) -> Workload:
    """A trace of the shared folder, as recorded."""
    files = {
        "conversation": "mooncake_conversation_0_30min.jsonl.gz",
        "claude_code": "claude_code_dev48.jsonl.zst",
    }
    return load(SHARED / "traces" / files[name])


@cache
def workload(name: str, seed: int) -> Workload:
    """The trace with its three-second ticks spread anew for each seed, where it has ticks."""
    return spread(trace(name), seed) if name == "conversation" else trace(name)
