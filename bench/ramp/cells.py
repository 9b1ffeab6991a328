"""The cells of the ramp: three kinds of traffic, each on an aggregated and on a split fleet.

A cell's load is a multiple of its knee. The knee is the rate at which Dynamo's default cost has
three times the mean time to first token of an idle fleet. The simulator finds it, so that no rate
is chosen by hand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from bench.replay.against_live import workload_of

from wardrop.demo.plan import BLOCK_SIZE, BLOCKS_PER_WORKER, MAX_MODEL_LEN, MODEL
from wardrop.demo.ramp.profile import Profile
from wardrop.demo.ramp.run import stretch
from wardrop.dynamo.embedded import FleetSpec, split_fleet
from wardrop.replay import Engine, Fleet, Policy, load_timing, simulate
from wardrop.timing import write_table
from wardrop.workload import ConversationSpec, Turn, generate

LOW, PEAK = 0.4, 1.4
"""Load at both ends and in the middle of the ramp, in multiples of the knee."""
KNEE_TTFT = 3.0
"""A fleet is at its knee where the mean TTFT is this many times that of the idle fleet."""
TUNING_SEED = 1000
"""Seed of the traffic that finds knees and tunes Dynamo. No judged run has it."""

KINDS = {
    "chat": ConversationSpec(),
    "agents": ConversationSpec(
        system_prompts=8,
        system_tokens=5000,
        user_tokens=350,
        reply_tokens=60,
        turns=10.0,
        think_s=0.5,
        max_prompt_tokens=32_768,
    ),
    "documents": ConversationSpec(
        system_prompts=400,
        zipf_exponent=0.7,
        system_tokens=9000,
        user_tokens=80,
        reply_tokens=80,
        turns=2.0,
        think_s=2.0,
        max_prompt_tokens=65_536,
    ),
}
"""Kinds of traffic.

*chat* is the demo's traffic. *agents* have many short turns with short pauses and a growing
context. *documents* are few questions about one of 400 long texts, some of them popular.
"""
FLEETS = {"aggregated": (4, None), "split": (0, "2x2")}
"""Fleets: aggregated workers, or prefill × decode workers."""


@dataclass(frozen=True)
class Cell:
    """One kind of traffic on one fleet.

    Attributes:
        kind: Key of `KINDS`.
        fleet: Key of `FLEETS`.
    """

    kind: str
    fleet: str

    @property
    def name(self) -> str:
        """Name of the cell, in one word."""
        return f"{self.kind}/{self.fleet}"

    def spec(self, timing: Path) -> FleetSpec:
        """The live fleet, whose mock workers follow a timing table (.npz)."""
        workers, split = FLEETS[self.fleet]
        spec = FleetSpec(
            workers=workers or 1,
            process_per_worker=False,
            model_name=MODEL,
            block_size=BLOCK_SIZE,
            blocks=BLOCKS_PER_WORKER,
            max_model_len=MAX_MODEL_LEN,
            timing_table=timing,
        )
        return split_fleet(split, spec) if split is not None else spec

    def simulated(self, timing: Path, *, metrics: bool) -> Fleet:
        """The same fleet in the simulator; `metrics`: whether workers report every iteration."""
        workers, split = FLEETS[self.fleet]
        engine = Engine(
            block_size=BLOCK_SIZE, num_blocks=BLOCKS_PER_WORKER, timing=load_timing(timing)
        )
        if split is None:
            return Fleet(workers=workers, engine=engine, feed_delay_ms=1.0, metrics=metrics)
        prefill, decode = FleetSpec.parse_split(split)
        return Fleet.split(prefill, decode, engine=engine, feed_delay_ms=1.0, metrics=metrics)

    def profile(self, knee_per_s: float, seconds: float) -> Profile:
        """The load over time for a knee in requests/s."""
        return Profile(seconds, LOW * knee_per_s, PEAK / LOW)

    def turns(self, profile: Profile, seed: int) -> list[Turn]:
        """The requests of a run, on the profile's clock."""
        virtual_s = float(profile.virtual_s(np.array([profile.seconds]))[0])
        law = replace(
            KINDS[self.kind], requests_per_s=profile.low_per_s, seconds=virtual_s, seed=seed
        )
        return stretch(generate(law), profile)

    def knee_per_s(self, timing: Path) -> float:
        """Rate at the knee, in requests/s, by bisection; within 5 %."""

        @cache
        def ttft_s(rate: float) -> float:
            law = replace(KINDS[self.kind], requests_per_s=rate, seconds=60.0, seed=TUNING_SEED)
            workload = workload_of(generate(law), BLOCK_SIZE)
            fleet = self.simulated(timing, metrics=False)
            return simulate(workload, fleet, Policy.parse("dynamo")).summary()["ttft_mean_s"]

        low, high = 0.5, 200.0
        limit_s = KNEE_TTFT * ttft_s(low)
        while high / low > 1.05:
            middle = float(np.sqrt(low * high))
            low, high = (low, middle) if ttft_s(middle) > limit_s else (middle, high)
        return round(low, 2)


def cells() -> list[Cell]:
    """All cells."""
    return [Cell(kind, fleet) for fleet in FLEETS for kind in KINDS]


def timing_table(folder: Path) -> Path:
    """Write the timing table of the demo's engines into a folder."""
    return write_table(folder / "b200.npz")
