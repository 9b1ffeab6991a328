"""Delay and false alarms of overload detection: polls of 250 ms against polls of 5 s."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from bench.paper.drawing import axes, save
from bench.paper.settings import paper_policy, phased, split, write

from wardrop.control import Sample
from wardrop.replay import Fleet, Policy, Result, Workload, simulate
from wardrop.replay.controlled import ControlledRun
from wardrop.replay.run import result_of

PHASE_S = 60.0
RAMPS = {
    "40/s": (10.0, 10.0, 40.0, 10.0, 10.0),
    "60/s": (10.0, 10.0, 60.0, 10.0, 10.0, 10.0),
}
"""Overload of 1.4 and 2.1 times the capacity."""
DRAWN = "40/s"
STEADY = ((10.0,) * 5, (18.0,) * 5, (24.0,) * 5, (27.0,) * 5)
SHAPE = {"groups": 200, "prefix": 1024, "suffix": 2048, "output": 128}
FLAT = {"temperatures": [0.0, 0.0, 0.0], "overlap_weights": [1.0, 1.0, 1.0]}
DETECTORS = {
    "polls of 5 s, the paper's thresholds": {},
    "polls of 5 s, 3 × and 10 × baseline": {"enter": [3.0, 10.0]},
}
OURS = "looks of 250 ms, load, queue and tail"

Changes = list[tuple[float, str]]


def fleet() -> Fleet:
    """Two prefill and five decode workers: capacity for about 29 of the prompts per second."""
    return replace(split("70B", 2, 5), anarchy_window=0)


def baseline_s(seed: int) -> float:
    """p99 TTFT at low load."""
    result = simulate(phased((10.0,), 2 * PHASE_S, seed, **SHAPE), fleet(), "dynamo")
    return float(np.percentile(result.ttft_ms, 99)) / 1e3


def watched(workload: Workload, seed: int) -> tuple[Result, list[tuple[float, Sample]]]:
    """A run with the controller of `wardrop.control` that changes nothing, and its samples."""
    seen: list[tuple[float, Sample]] = []
    policy, where = Policy("dynamo"), fleet()
    run = ControlledRun(
        workload,
        where,
        policy.routers(where, seed),
        seed,
        {"acts": False},
        on_sample=lambda now_s, sample: seen.append((now_s, sample)),
    )
    run.advance()
    return result_of(workload, where, run.finish(), run.audit), seen


def ours(result: Result) -> Changes:
    """Changes of regime by the detector of `wardrop.control` in a run."""
    return [(r.at_s, str(r.after).lower()) for r in result.audit if r.event == "regime"]


def polled(workload: Any, seed: int, base_s: float, settings: dict[str, Any]) -> Changes:
    """Changes of regime by the paper's detector; equal weights keep the routing as it is."""
    policy: Policy = paper_policy(base_s, **FLAT, **settings)
    result = simulate(workload, fleet(), policy, seed=seed)
    return [(at_s, to) for at_s, to, _, _ in result.regimes[1]]


def judged(changes: Changes, over_s: float, clear_s: float) -> dict[str, Any]:
    """Delays after the start and the end of the overload, and alarms outside of the overload."""
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
    """Ramps over the knee and steady loads below it, every detector."""
    found: dict[str, Any] = {"ramps": RAMPS, "phase_s": PHASE_S, "rows": [], "steady": []}
    for seed in range(seeds):
        base_s = baseline_s(seed + 50)
        for ramp, rates in RAMPS.items():
            workload = phased(rates, PHASE_S, seed, **SHAPE)
            result, seen = watched(workload, seed)
            ttft = result.ttft_ms / 1e3
            # The backlog is gone once the TTFT is back at its value before the overload.
            late = result.first_token_ms[ttft > 3 * base_s] / 1e3
            clear_s = float(late.max()) if late.size else 3 * PHASE_S
            arms = {name: polled(workload, seed, base_s, s) for name, s in DETECTORS.items()}
            arms[OURS] = ours(result)
            for name, changes in arms.items():
                row = judged(changes, 2 * PHASE_S, clear_s)
                row |= {"seed": seed, "ramp": ramp, "detector": name, "clear_s": clear_s}
                found["rows"].append({**row, "at": changes})
            if seed == 0 and ramp == DRAWN:
                found["trace"] = [[now_s, s.ttft_p99_s] for now_s, s in seen]
                found["baseline_s"] = base_s
        for rates in STEADY:
            workload = phased(rates, PHASE_S, seed + 100, **SHAPE)
            arms = {name: polled(workload, seed, base_s, s) for name, s in DETECTORS.items()}
            arms[OURS] = ours(watched(workload, seed)[0])
            for name, changes in arms.items():
                row = {"seed": seed, "detector": name, "per_s": rates[0], "changes": len(changes)}
                row["alarms"] = sum(to != "below" for _, to in changes)
                row["saturated"] = sum(to == "saturated" for _, to in changes)
                found["steady"].append(row)
    write("regimes", found)
    show(found)
    return found


def show(found: dict[str, Any]) -> None:
    """Print the smallest, mean and largest delay over seeds, and the alarms."""
    for ramp in RAMPS:
        for name in (*DETECTORS, OURS):
            rows = [r for r in found["rows"] if r["detector"] == name and r["ramp"] == ramp]
            parts: list[str] = []
            for key in ("delay_s", "saturated_delay_s", "clear_delay_s", "false_alarms"):
                known = [float(r[key]) for r in rows if r[key] is not None]
                span = f"{min(known):.2f}/{np.mean(known):.2f}/{max(known):.2f}" if known else "–"
                parts.append(f"{key} {span} ({len(known)} of {len(rows)})")
            print(f"{ramp:10} {name:40}", ", ".join(parts), flush=True)
    for rates in STEADY:
        for name in (*DETECTORS, OURS):
            rows = [r for r in found["steady"] if (r["detector"], r["per_s"]) == (name, rates[0])]
            alarms = [r["alarms"] for r in rows]
            full = np.mean([r["saturated"] for r in rows])
            print(
                f"{rates[0]:g}/s {name:40} alarms {np.mean(alarms):.1f} {alarms}, {full:.1f} full"
            )


def draw(found: dict[str, Any]) -> None:
    """One ramp: the tail of the TTFT, and the regime by each detector."""
    levels = {"below": 0, "transition": 1, "saturated": 2}
    figure, grid = axes(2, 1, width=8.0, height=2.4)
    at_s, p99 = zip(*found["trace"], strict=True)
    grid[0, 0].plot(at_s, np.maximum(p99, 1e-3), color="k", lw=0.8)
    grid[0, 0].set(yscale="log", ylabel="TTFT p99 of 2 s, s")
    for row in (r for r in found["rows"] if r["seed"] == 0 and r["ramp"] == DRAWN):
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
