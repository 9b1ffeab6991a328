"""How soon overload is noticed, and how often without cause: 1 s outcomes against 5 s polls."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from bench.paper.drawing import axes, save
from bench.paper.settings import paper_policy, phased, split, timing, write
from numpy.typing import NDArray

from wardrop.control import Regime, RegimeDetector, Sample
from wardrop.replay import Fleet, Policy, simulate
from wardrop.replay.run import Result
from wardrop.replay.timing import Timing

PHASE_S = 60.0
RAMP = (10.0, 10.0, 40.0, 10.0, 10.0)
STEADY = ((10.0,) * 5, (18.0,) * 5, (24.0,) * 5)
SHAPE = {"groups": 200, "prefix": 1024, "suffix": 2048, "output": 128}
FLAT = {"temperatures": [0.0, 0.0, 0.0], "overlap_weights": [1.0, 1.0, 1.0]}
DETECTORS = {
    "polls of 5 s, the paper's thresholds": {},
    "polls of 5 s, 3 × and 10 × baseline": {"enter": [3.0, 10.0]},
}
OURS = "outcomes of 1 s, 3 × and 10 × baseline"

Changes = list[tuple[float, str]]


def fleet() -> Fleet:
    """Two prefill and five decode workers: room for about 29 of these prompts a second."""
    return replace(split("70B", 2, 5), anarchy_window=0)


def baseline_s(seed: int) -> float:
    """p99 TTFT at low load."""
    result = simulate(phased(RAMP[:1], 2 * PHASE_S, seed, **SHAPE), fleet(), "dynamo")
    return float(np.percentile(result.ttft_ms, 99)) / 1e3


def prefill_s(tokens: NDArray[np.uint32], table: Timing) -> NDArray[np.float64]:
    """Prefill seconds by the timing table."""
    ms: NDArray[np.float64] = np.interp(
        tokens, np.asarray(table["prefill_isl"]), np.asarray(table["prefill_ttft_ms"])
    )
    return ms / 1e3


def samples(result: Result, prefill_workers: int) -> list[tuple[float, Sample]]:
    """What a router knows at the end of every second."""
    arrival, first = result.arrival_ms / 1e3, result.first_token_ms / 1e3
    work = prefill_s(result.input_tokens - result.cached_tokens, timing("70B"))
    found: list[tuple[float, Sample]] = []
    for second in range(1, int(first.max()) + 2):
        here = (first > second - 1) & (first <= second)
        came = (arrival > second - 1) & (arrival <= second)
        ttft = (first - arrival)[here]
        itl = np.nanmean(result.itl_ms[here]) / 1e3 if here.any() else 0.0
        sample = Sample(
            requests=int(here.sum()),
            ttft_mean_s=float(ttft.mean()) if ttft.size else 0.0,
            ttft_p99_s=float(np.percentile(ttft, 99)) if ttft.size else 0.0,
            itl_mean_s=float(itl),
            e2e_mean_s=0.0,
            utilisation=float(work[came].sum()) / prefill_workers,
            arrivals_per_s=float(came.sum()),
        )
        found.append((float(second), sample))
    return found


def ours(result: Result) -> Changes:
    """Changes of `wardrop.control`'s detector."""
    detector, changes = RegimeDetector(), list[tuple[float, str]]()
    for now_s, sample in samples(result, 2):
        before = detector.regime
        if detector.step(now_s, sample) != before:
            changes.append((now_s, Regime(detector.regime).name.lower()))
    return changes


def polled(workload: Any, seed: int, base_s: float, settings: dict[str, Any]) -> Changes:
    """Changes of the paper's detector; its weights are level, so that it only watches."""
    policy: Policy = paper_policy(base_s, **FLAT, **settings)
    result = simulate(workload, fleet(), policy, seed=seed)
    return [(at_s, to) for at_s, to, _, _ in result.regimes[1]]


def judged(changes: Changes, over_s: float, clear_s: float) -> dict[str, Any]:
    """Delays after the overload's start and end, and alarms outside of it."""
    up = [at for at, to in changes if to != "below" and over_s <= at <= clear_s]
    full = [at for at, to in changes if to == "saturated" and over_s <= at <= clear_s]
    back = [at for at, to in changes if to == "below" and at > over_s]
    early = [at for at, to in changes if to != "below" and at < over_s]
    return {
        "delay_s": up[0] - over_s if up else None,
        "saturated_delay_s": full[0] - over_s if full else None,
        "clear_delay_s": back[0] - clear_s if back and back[0] >= clear_s else None,
        "false_alarms": len(early),
        "changes": len(changes),
    }


def run(seeds: int) -> dict[str, Any]:
    """A ramp over the knee and back, and three steady loads, per seed."""
    found: dict[str, Any] = {"phase_s": PHASE_S, "ramp": RAMP, "rows": [], "steady": []}
    for seed in range(seeds):
        base_s = baseline_s(seed)
        workload = phased(RAMP, PHASE_S, seed, **SHAPE)
        watched = simulate(workload, fleet(), "dynamo", seed=seed)
        ttft = watched.ttft_ms / 1e3
        # The backlog is gone when a first token is as soon as before.
        late = watched.first_token_ms[ttft > 3 * base_s] / 1e3
        clear_s = float(late.max()) if late.size else 3 * PHASE_S
        arms = {name: polled(workload, seed, base_s, s) for name, s in DETECTORS.items()}
        arms[OURS] = ours(watched)
        for name, changes in arms.items():
            row = judged(changes, 2 * PHASE_S, clear_s)
            found["rows"].append({"seed": seed, "detector": name, "clear_s": clear_s, **row})
            found["rows"][-1]["at"] = changes
        if seed == 0:
            found["trace"] = [[now_s, s.ttft_p99_s] for now_s, s in samples(watched, 2)]
            found["baseline_s"] = base_s
        for rates in STEADY:
            workload = phased(rates, PHASE_S, seed + 100, **SHAPE)
            watched = simulate(workload, fleet(), "dynamo", seed=seed)
            arms = {name: polled(workload, seed, base_s, s) for name, s in DETECTORS.items()}
            arms[OURS] = ours(watched)
            for name, changes in arms.items():
                alarms = sum(to != "below" for _, to in changes)
                row = {"seed": seed, "detector": name, "per_s": rates[0], "alarms": alarms}
                found["steady"].append(row)
    write("regimes", found)
    return found


def draw(found: dict[str, Any]) -> None:
    """One ramp: the tail, and what each detector says."""
    levels = {"below": 0, "transition": 1, "saturated": 2}
    figure, grid = axes(2, 1, width=8.0, height=2.4)
    at_s, p99 = zip(*found["trace"], strict=True)
    grid[0, 0].plot(at_s, np.maximum(p99, 1e-3), color="k", lw=0.8)
    grid[0, 0].set(yscale="log", ylabel="TTFT p99 per second, s")
    for row in (r for r in found["rows"] if r["seed"] == 0):
        steps = [
            (0.0, "below"),
            *row["at"],
            (max(at_s), row["at"][-1][1] if row["at"] else "below"),
        ]
        shift = 0.06 * [*DETECTORS, OURS].index(row["detector"])
        times = [at for at, _ in steps]
        values = [levels[to] + shift for _, to in steps]
        grid[1, 0].step(times, values, where="post", label=row["detector"], lw=1.4)
    grid[1, 0].set(xlabel="time, s", yticks=list(levels.values()), yticklabels=list(levels))
    grid[1, 0].legend(fontsize=7)
    for axis in grid[:, 0]:
        axis.axvspan(2 * found["phase_s"], 3 * found["phase_s"], color="#c44e52", alpha=0.12)
        axis.set_xlim(0, max(at_s))
    save(figure, "regimes")
