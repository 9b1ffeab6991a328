"""The paper's estimator beside the price of anarchy against the bound, in a closed loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench.paper.drawing import axes, colour, save
from bench.paper.settings import (
    PAPER_FLEETS,
    PAPER_WINDOW,
    closed_baseline_s,
    closed_loop,
    paper_policy,
    split,
    write,
)
from numpy.typing import NDArray

from wardrop.control import knee_load
from wardrop.replay import Policy, simulate

GAP_MS = 1.0
"""Longest gap between two arrivals of one burst."""
IN_FLIGHT = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512)


def run(seeds: int, requests: int) -> dict[str, Any]:
    """Every fleet, number in flight and policy; means over seeds."""
    rows: list[dict[str, Any]] = []
    knees: dict[str, Any] = {}
    for name, shape in PAPER_FLEETS.items():
        baseline_s = closed_baseline_s(*shape)
        policies = [
            ("dynamo", Policy("dynamo")),
            ("paper", paper_policy(baseline_s)),
            ("toll", Policy("toll")),
            ("toll+queue", Policy.parse("toll+queue")),
            ("round_robin", Policy("round_robin")),
            ("one prompt per pass", Policy.parse("toll+queue(share_passes=false)")),
        ]
        for label, policy in policies:
            for flight in IN_FLIGHT:
                row = _point(shape, flight, policy, seeds, max(requests, 8 * flight))
                rows.append({"fleet": name, "policy": label, "in_flight": flight, **row})
            here = [r for r in rows if r["fleet"] == name and r["policy"] == label]
            latency = np.asarray([r["e2e_mean_s"] for r in here])
            knees.setdefault(name, {})[label] = knee_load(np.asarray(IN_FLIGHT, float), latency)
        knees[name]["baseline_s"] = baseline_s
    found = {"window": PAPER_WINDOW, "seeds": seeds, "rows": rows, "knees": knees}
    write("poa", found)
    return found


def _point(
    shape: tuple[str, int, int], flight: int, policy: Policy, seeds: int, requests: int
) -> dict[str, Any]:
    runs: list[dict[str, float]] = []
    changes = 0
    for seed in range(seeds):
        workload = closed_loop(requests, seed)
        result = simulate(workload, split(*shape, concurrency=flight), policy, seed=seed)
        figures = result.summary()
        for leg, pool in zip(("prefill", "decode"), result.anarchy, strict=True):
            for key in ("poa", "poa_paper", "poa_square"):
                figures[f"{leg}_{key}"] = pool[key] if pool else float("nan")
        # The first fill of the loop is a burst; the requests after it show the steady state.
        late = result.ttft_ms[flight:] / 1e3
        figures["steady_ttft_p99_s"] = float(np.nanpercentile(late, 99))
        figures["steady_ttft_mean_s"] = float(np.nanmean(late))
        before_ms = (result.admit_ms - result.arrival_ms)[flight:]
        figures["steady_before_engine_s"] = float(np.nanmean(before_ms)) / 1e3
        figures["steady_burst"] = _burst(np.sort(result.arrival_ms)[flight:])
        changes += sum(len(pool) for pool in result.regimes)
        runs.append(figures)
    kept = (
        "steady_ttft_mean_s",
        "steady_ttft_p99_s",
        "steady_before_engine_s",
        "steady_burst",
        "itl_p99_ms",
        "e2e_mean_s",
        "output_tokens_per_s",
        "poa_ttft",
        "poa_e2e",
        "decision_loss",
        "decision_load",
        "decision_split",
        "model_error",
        "prefill_poa_paper",
        "decode_poa",
        "decode_poa_paper",
        "decode_poa_square",
    )
    return {key: float(np.mean([run[key] for run in runs])) for key in kept} | {"changes": changes}


def _burst(arrival_ms: NDArray[np.float64]) -> float:
    """Requests in the burst of a request, mean over requests: gaps above `GAP_MS` end a burst."""
    starts = np.append(0, np.diff(arrival_ms) > GAP_MS)
    sizes = np.bincount(np.cumsum(starts)).astype(np.float64)
    return float(np.mean(sizes**2) / np.mean(sizes))


def draw(found: dict[str, Any]) -> None:
    """One column per fleet: PoA-hat, the loss of a decision, cost over the bound, and tails."""
    figure, grid = axes(4, len(PAPER_FLEETS), height=2.8)
    for column, name in enumerate(PAPER_FLEETS):
        for policy in ("dynamo", "paper", "toll", "toll+queue"):
            rows = [r for r in found["rows"] if r["fleet"] == name and r["policy"] == policy]
            flight = [r["in_flight"] for r in rows]
            style = {"color": colour(policy), "label": policy, "marker": ".", "lw": 1.2}
            grid[0, column].plot(flight, [r["decode_poa_paper"] for r in rows], **style)
            grid[1, column].plot(flight, [r["decision_loss"] for r in rows], **style)
            grid[2, column].plot(flight, [r["poa_e2e"] for r in rows], **style)
            tail = [1e3 * r["steady_ttft_p99_s"] for r in rows]
            grid[3, column].plot(flight, tail, **style)
        workers = PAPER_FLEETS[name][2]
        grid[0, column].axhline(found["window"] / workers, color="k", ls=":", lw=1, label="N/m")
        grid[0, column].set(title=name, ylabel="PoA-hat, decode leg", ylim=(0, 22))
        grid[1, column].set(ylabel="loss of a decision, both legs", ylim=(0.99, None))
        grid[2, column].set(ylabel="E2E ÷ lower bound", ylim=(1, None))
        grid[3, column].set(ylabel="TTFT p99, ms", xlabel="requests in flight", yscale="log")
        for row in range(4):
            grid[row, column].set_xscale("log", base=2)
            grid[row, column].set_xticks([8, 32, 128, 512], ["8", "32", "128", "512"])
            grid[row, column].grid(alpha=0.3)
    grid[0, 0].legend(fontsize=7)
    save(figure, "poa")
