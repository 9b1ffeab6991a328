"""Does the guard keep good changes and roll back harmful ones, while the queue moves by itself?

Changes by hand with a known effect are made at second 60. The load is steady, over capacity (the
queue grows regardless of the change), about to surge or about to fall. The guard judges by its
forecast, and for comparison by the figures before and after alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from bench.paper.drawing import axes, save
from bench.paper.settings import phased, timing, write

from wardrop.control import GuardSettings, Settings
from wardrop.replay import Engine, Fleet, Policy
from wardrop.replay.controlled import ControlledRun

CHANGE_S = 60.0
AFTER_S = 120.0
SHAPE = {"groups": 1200, "prefix": 2048, "suffix": 512, "output": 64}
"""2.5 million tokens of prefixes: no worker of a million holds them all, four together do."""
LOADS = {
    "steady": (0.0, 0.0),
    "queue grows": (1.0, 1.0),
    "surge 10 s later": (0.0, 1.0),
    "load falls 10 s later": (1.0, 0.0),
}
"""Before and after: 0 is `LOW_PER_S`, 1 the start's `OVER_PER_S`."""
LOW_PER_S = 70.0
GOOD, HARM, NONE = "good", "harmful", "without effect"
PLANTED: dict[str, tuple[str, dict[str, Any]]] = {
    GOOD: ("round_robin+queue", {"policy": "toll"}),
    HARM: ("toll+queue", {"policy": "round_robin"}),
    NONE: ("toll+queue", {"max_wait_s": 119.0}),
}
"""What is planted: the policy before, and the change."""
OVER_PER_S = {"round_robin+queue": 105.0, "toll+queue": 130.0}
"""Over the capacity of each: about 90 and 115 of these requests per second."""
GUARDS = {"forecast": True, "before against after": False}


def fleet() -> Fleet:
    """Four aggregated workers."""
    return Fleet(workers=4, engine=Engine(timing=timing("70B")))


def judged(kind: str, load: str, seed: int, forecasts: bool) -> tuple[str, float, str]:
    """The outcome of the planted change, the seconds until the outcome, and its reason."""
    start, change = PLANTED[kind]
    rates = [LOW_PER_S + at * (OVER_PER_S[start] - LOW_PER_S) for at in LOADS[load]]
    lengths = (CHANGE_S + 10.0, AFTER_S)
    workload = phased(tuple(rates), lengths, seed, **SHAPE)
    policy = Policy.parse(start)
    settings = Settings({}, guard=GuardSettings(forecasts=forecasts))
    run = ControlledRun(
        workload, fleet(), policy.routers(fleet(), seed), seed, {}, settings=settings
    )
    run.advance(CHANGE_S)
    number = run.door.change(change, "hand", kind).number
    run.advance(CHANGE_S + AFTER_S)
    verdict = next((record for record in run.audit if record.of == number), None)
    if verdict is None:
        return "undecided", AFTER_S, ""
    return verdict.event, verdict.at_s - CHANGE_S, verdict.reason


def run(seeds: int) -> dict[str, Any]:
    """Every planted change, load, guard and seed."""
    rows: list[dict[str, Any]] = []
    for kind in PLANTED:
        for load in LOADS:
            for guard, forecasts in GUARDS.items():
                found = [judged(kind, load, seed, forecasts) for seed in range(seeds)]
                kept = sum(event == "kept" for event, _, _ in found)
                took_s = float(np.mean([took_s for _, took_s, _ in found]))
                row: dict[str, Any] = {
                    "planted": kind,
                    "load": load,
                    "guard": guard,
                    "kept": kept,
                    "rolled_back": sum(event == "rolled_back" for event, _, _ in found),
                    "of": seeds,
                    "took_mean_s": took_s,
                    "reasons": [why for _, _, why in found],
                }
                rows.append(row)
                print(
                    f"{kind:15} {load:22} {guard:22} kept {kept}, rolled back "
                    f"{row['rolled_back']} of {seeds} after {took_s:.0f} s",
                    flush=True,
                )
    kept = {"seeds": seeds, "rows": rows, "low_per_s": LOW_PER_S, "over_per_s": OVER_PER_S}
    write("guard", kept)
    return kept


def draw(found: dict[str, Any]) -> None:
    """Share of right verdicts, by planted change, load and guard."""
    figure, grid = axes(1, len(PLANTED), width=3.6, height=2.6)
    for axis, kind in zip(grid[0], PLANTED, strict=True):
        right = "rolled_back" if kind == HARM else "kept"
        for i, guard in enumerate(GUARDS):
            rows = [r for r in found["rows"] if r["planted"] == kind and r["guard"] == guard]
            at = np.arange(len(rows)) + 0.38 * i
            shares = [100 * r[right] / r["of"] for r in rows]
            axis.barh(at, shares, 0.36, label=guard, color=("#4c72b0", "#bbbbbb")[i])
            for place, share in zip(at, shares, strict=True):
                axis.text(share + 1, place, f"{share:.0f}", va="center", fontsize=7)
        names = list(LOADS) if kind == GOOD else [""] * len(LOADS)
        axis.set_yticks(np.arange(len(LOADS)) + 0.19, names, fontsize=8)
        axis.invert_yaxis()
        axis.set(xlim=(0, 112), xlabel=f"% {right.replace('_', ' ')}")
        axis.set_title(f"planted: {kind}", fontsize=9)
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), fontsize=7, loc="outside lower right", ncols=2
    )
    save(figure, "guard")
