"""Temperature and overlap weight, 4 × 4, below and at saturation."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench.paper.drawing import axes, save
from bench.paper.settings import SHARED, closed_loop, split, timing, write

from wardrop.replay import Engine, Fleet, Policy, Workload, load, simulate, spread

TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
WEIGHTS = (0.1, 0.5, 1.0, 2.0)
FIGURES = (
    "ttft_mean_s",
    "ttft_p99_s",
    "output_tokens_per_s",
    "decision_loss",
    "poa_ttft",
    "poa_e2e",
    "poa_paper",
    "reuse",
)


def _places(requests: int) -> dict[str, tuple[Any, Fleet]]:
    trace = load(SHARED / "traces" / "mooncake_conversation_0_30min.jsonl.gz").part(0, 0.35)
    fleet = Fleet(workers=8, engine=Engine(timing=timing("70B")), anarchy_window=64)

    def loop(seed: int) -> Workload:
        return closed_loop(requests, seed)

    def conversation(seed: int) -> Workload:
        return spread(trace, seed)

    return {
        "closed loop 1P/2D, 64 in flight": (loop, split("70B", 1, 2, concurrency=64)),
        "closed loop 1P/2D, 512 in flight": (loop, split("70B", 1, 2, concurrency=512)),
        "conversation × 1.5, 8 workers": (conversation, fleet.with_load(rate=1.5)),
        "conversation × 4.5, 8 workers": (conversation, fleet.with_load(rate=4.5)),
    }


def run(seeds: int, requests: int) -> dict[str, Any]:
    """Every place and pair of parameters; means over seeds, and the spread over the 16 pairs."""
    found: dict[str, Any] = {"temperatures": TEMPERATURES, "weights": WEIGHTS, "places": {}}
    for name, (workload, fleet) in _places(requests).items():
        made = [workload(seed) for seed in range(seeds)]
        cells: dict[str, list[list[float]]] = {key: [] for key in FIGURES}
        for weight in WEIGHTS:
            lines: dict[str, list[float]] = {key: [] for key in FIGURES}
            for temperature in TEMPERATURES:
                pair = {"router_temperature": temperature, "prefill_load_scale": weight}
                runs = [
                    simulate(one, fleet, Policy("dynamo", pair), seed=seed).summary()
                    for seed, one in enumerate(made)
                ]
                for key in FIGURES:
                    lines[key].append(float(np.mean([figures[key] for figures in runs])))
            for key in FIGURES:
                cells[key].append(lines[key])
        spreads = {key: float(np.std(cells[key]) / np.mean(cells[key])) for key in FIGURES}
        found["places"][name] = {"cells": cells, "spread": spreads}
        print(name, {key: f"{100 * value:.1f} %" for key, value in spreads.items()}, flush=True)
    write("sweep", found)
    return found


def draw(found: dict[str, Any]) -> None:
    """Mean TTFT of every pair, one panel per place."""
    places = found["places"]
    figure, grid = axes(1, len(places), width=3.6, height=3.3)
    for axis, (name, place) in zip(grid[0], places.items(), strict=True):
        values = np.asarray(place["cells"]["ttft_mean_s"])
        axis.imshow(values, cmap="viridis_r", origin="lower")
        for (row, column), value in np.ndenumerate(values):
            light = value > (values.min() + values.max()) / 2
            ink = "white" if light else "black"
            axis.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=8, color=ink)
        spreads = place["spread"]
        axis.set_title(f"{name}\nspread {100 * spreads['ttft_mean_s']:.1f} %", fontsize=9)
        axis.set_xticks(range(len(TEMPERATURES)), [str(t) for t in TEMPERATURES])
        axis.set_yticks(range(len(WEIGHTS)), [str(w) for w in WEIGHTS])
        axis.set(xlabel="temperature τ", ylabel="weight ω")
    figure.suptitle("mean TTFT, s", fontsize=10)
    save(figure, "sweep")
