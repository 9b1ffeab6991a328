"""The sweeps behind docs/reports/replay.md: both traces, aggregated and split, and weak affinity.

`python bench/replay/sweeps.py OUT [--shared ../shared] [--arm NAME …] [--policy NAME …]`

Resumable: finished cells are in OUT/ARM.jsonl and are not run again. `--policy` runs only the named
policies, so that a change of one policy costs only its cells (delete its lines first). Once an arm
has all its cells, OUT/ARM.json is written for `pictures.py`. Arms without their trace are skipped
with a message. CPU time of all arms: about a quarter of an hour of one core.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from wardrop.replay import Engine, Fleet, Policy, Slo, Workload, load, load_timing, restart
from wardrop.replay.generate import generate
from wardrop.replay.sweep import Cell, Plan, sweep

POLICIES = (
    *("round_robin", "least_loaded", "power_of_two", "dynamo", "lmetric", "two_tier"),
    *("sticky", "chwbl", "toll", "toll+queue"),
)
HEARING = ("dynamo", "lmetric", "two_tier", "sticky", "toll", "toll+queue")
SEEDS = (0, 1, 2)
SLO = Slo()


@dataclass(frozen=True)
class Arm:
    """One sweep.

    Attributes:
        workload: makes the requests of a seed.
        fleet: the simulated fleet.
        loads: rate factors, requests in flight, or values of `vary`.
        closed: whether `loads` are requests in flight.
        vary: makes the fleet of a value, where the x axis is not the load.
        unit: unit of the x axis.
        policies: the policies to compare.
    """

    workload: Callable[[int], Workload]
    fleet: Fleet
    loads: tuple[float, ...]
    closed: bool = False
    vary: Callable[[Fleet, float], Fleet] | None = None
    unit: str = "load ×"
    policies: tuple[str, ...] = POLICIES


def arms(shared: Path) -> dict[str, Arm]:
    """All arms, by name."""
    timing = load_timing(shared / "timing/llama70b_tp4_b200.npz")
    engine = Engine(timing=timing)
    eight = Fleet(workers=8, engine=engine)

    def conversation(seed: int) -> Workload:
        trace = shared / "traces/mooncake_conversation_0_30min.jsonl.gz"
        return load(trace, spread_ticks=True, seed=seed)

    def code(seed: int) -> Workload:
        return restart(load(shared / "traces/claude_code_dev48.jsonl.zst"), seed)

    def azure(seed: int) -> Workload:
        trace = shared / "traces/azure2023_conv.csv.zst"
        return load(trace).part(0.2 * seed, 0.2 * seed + 0.4)

    def hot(seed: int) -> Workload:
        text = "requests=6000,per_s=25,groups=40,zipf=1.8,prefix=6144,suffix=256,output=200"
        return generate(f"prefixes({text})", seed)

    def paper(seed: int) -> Workload:
        return generate("paper(requests=3000)", seed)

    def heard(field: str) -> Callable[[Fleet, float], Fleet]:
        return lambda fleet, value: replace(fleet, **{field: value})

    at_three = replace(eight, rate=3.0)
    reported = replace(at_three, metrics=True)
    return {
        "conversation": Arm(conversation, eight, (1.5, 3, 4.5, 6, 8)),
        "code": Arm(code, eight, (1, 2, 4, 8, 12)),
        "conversation-split": Arm(
            conversation, Fleet.split(5, 3, engine=engine), (1, 1.5, 2, 3, 4)
        ),
        "code-split": Arm(code, Fleet.split(4, 4, engine=engine), (1, 2, 4, 6, 8)),
        "hot": Arm(hot, eight, (1, 3, 5)),
        "azure": Arm(azure, eight, (6, 12, 18)),
        "paper": Arm(paper, Fleet.split(1, 5, engine=engine), (16, 64, 256), closed=True),
        "feed-delay": Arm(
            conversation,
            at_three,
            (0, 100, 1_000, 10_000, 60_000),
            vary=heard("feed_delay_ms"),
            unit="KV events late, ms",
            policies=HEARING,
        ),
        "feed-loss": Arm(
            conversation,
            at_three,
            (0, 0.01, 0.1, 0.5, 1),
            vary=heard("feed_loss"),
            unit="KV events lost",
            policies=HEARING,
        ),
        "metrics-delay": Arm(
            conversation,
            reported,
            (0, 1_000, 10_000, 60_000),
            vary=heard("metrics_delay_ms"),
            unit="reports late, ms",
            policies=("toll", "toll+queue"),
        ),
        "metrics-loss": Arm(
            conversation,
            reported,
            (0, 0.5, 1),
            vary=heard("metrics_loss"),
            unit="reports lost",
            policies=("toll", "toll+queue"),
        ),
    }


def run(arm: Arm, names: tuple[str, ...], store: Path, threads: int) -> list[Cell]:
    """Run the missing cells of an arm under some policies; returns all its cells."""
    policies = [Policy.parse(name) for name in names]
    made: dict[int, Workload] = {}

    def workload(seed: int) -> Workload:
        return made.setdefault(seed, arm.workload(seed))

    def shown(done: int, total: int) -> None:
        print(f"\r{store.stem}: {done}/{total}", end="", file=sys.stderr, flush=True)

    if arm.vary is None:
        span_ms = workload(0).span_s * 1e3
        fleet = replace(arm.fleet, sample_ms=max(span_ms / 240, 50.0) if span_ms else 1_000.0)
        plan = Plan(workload, fleet, policies, arm.loads, SEEDS, arm.closed, SLO)
        return sweep(plan, resume=store, threads=threads, progress=shown)
    cells: list[Cell] = []
    for value in arm.loads:
        fleet = arm.vary(arm.fleet, value)
        plan = Plan(workload, fleet, policies, (fleet.rate,), SEEDS, False, SLO)
        part = store.with_name(f"{store.stem}@{value:g}.jsonl")
        found = sweep(plan, resume=part, threads=threads, progress=shown)
        cells += [replace(cell, load=value) for cell in found]
    return cells


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--arm", action="append")
    parser.add_argument("--policy", action="append")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    start = time.process_time()
    for name, arm in arms(given.shared).items():
        if given.arm and name not in given.arm:
            continue
        chosen = tuple(p for p in arm.policies if not given.policy or p in given.policy)
        if not chosen:
            continue
        try:
            cells = run(arm, chosen, given.out / f"{name}.jsonl", given.threads)
        except ValueError as error:
            print(f"\n{name}: SKIPPED, {error}", file=sys.stderr)
            continue
        print(f"\n{name}: {time.process_time() - start:.0f} s of CPU so far", file=sys.stderr)
        if chosen == arm.policies:
            setting: dict[str, Any] = {"trace": name, "closed_loop": arm.closed, "unit": arm.unit}
            stored = {"setting": setting, "cells": [asdict(cell) for cell in cells]}
            (given.out / f"{name}.json").write_text(json.dumps(stored))


if __name__ == "__main__":
    main()
