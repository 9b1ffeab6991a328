"""Temperature and overlap weight, 4 × 4, below and at saturation."""

from __future__ import annotations

from typing import Any

import numpy as np
from bench.paper.drawing import axes, save
from bench.paper.ranks import ranks, ranks_text, run_figures
from bench.paper.settings import SHARED, closed_loop, split, timing, write

from wardrop.replay import Engine, Fleet, Policy, Workload, load, simulate, spread

TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
WEIGHTS = (0.1, 0.5, 1.0, 2.0)
FIGURES = (
    "ttft_mean_s",
    "ttft_p99_s",
    "e2e_mean_s",
    "output_tokens_per_s",
    "decision_loss",
    "poa_ttft",
    "poa_e2e",
    "poa_paper",
    "decode_poa_paper",
    "reuse",
)
PANELS = {
    "ttft_mean_s": "mean TTFT, s",
    "poa_e2e": "E2E ÷ lower bound",
    "decode_poa_paper": "PoA-hat",
}
"""Figures of the picture, one row each."""


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
    """Every place and pair of parameters.

    Figures are means over seeds. `spread` is the spread over the 16 pairs, and `ranks` says whether
    an index ranks the pairs as their latency does.
    """
    found: dict[str, Any] = {
        "seeds": seeds,
        "temperatures": TEMPERATURES,
        "weights": WEIGHTS,
        "places": {},
    }
    for name, (workload, fleet) in _places(requests).items():
        made = [workload(seed) for seed in range(seeds)]
        cells: dict[str, list[list[float]]] = {key: [] for key in FIGURES}
        pairs: list[list[dict[str, float]]] = [[] for _ in made]
        for weight in WEIGHTS:
            lines: dict[str, list[float]] = {key: [] for key in FIGURES}
            for temperature in TEMPERATURES:
                pair = {"router_temperature": temperature, "prefill_load_scale": weight}
                runs = [
                    run_figures(simulate(one, fleet, Policy("dynamo", pair), seed=seed))
                    for seed, one in enumerate(made)
                ]
                for kept, figures in zip(pairs, runs, strict=True):
                    kept.append(figures)
                for key in FIGURES:
                    lines[key].append(float(np.mean([figures[key] for figures in runs])))
            for key in FIGURES:
                cells[key].append(lines[key])
        spreads = {key: float(np.std(cells[key]) / np.mean(cells[key])) for key in FIGURES}
        taus = ranks(pairs)
        found["places"][name] = {"cells": cells, "spread": spreads, "ranks": taus}
        print(name, {key: f"{100 * value:.2f} %" for key, value in spreads.items()}, flush=True)
        print(f"    {ranks_text(taus)}", flush=True)
    write("sweep", found)
    return found


def draw(found: dict[str, Any]) -> None:
    """TTFT, cost over the bound, and the paper's estimator of every pair; a column per place."""
    places = found["places"]
    figure, grid = axes(len(PANELS), len(places), width=3.6, height=3.2)
    for column, (name, place) in enumerate(places.items()):
        for row, (key, title) in enumerate(PANELS.items()):
            axis = grid[row, column]
            _panel(axis, np.asarray(place["cells"][key]))
            spread_text = f"{title}, spread {100 * place['spread'][key]:.2f} %"
            axis.set_title(f"{name}\n{spread_text}" if row == 0 else spread_text, fontsize=9)
    for axis in grid[-1]:
        axis.set_xlabel("temperature τ")
    for axis in grid[:, 0]:
        axis.set_ylabel("weight ω")
    save(figure, "sweep")


def _panel(axis: Any, values: Any) -> None:
    """One figure of the 16 pairs: dark is large."""
    axis.imshow(values, cmap="viridis_r", origin="lower")
    for (row, column), value in np.ndenumerate(values):
        light = value > (values.min() + values.max()) / 2
        ink = "white" if light else "black"
        axis.text(column, row, f"{value:#.4g}", ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(TEMPERATURES)), [str(t) for t in TEMPERATURES])
    axis.set_yticks(range(len(WEIGHTS)), [str(w) for w in WEIGHTS])
