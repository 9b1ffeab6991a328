"""The pictures of the documentation, drawn from new runs. Needs matplotlib (the extra `plot`).

Where it stands: outside the games, imported only to draw a picture.
`wardrop games plots --out docs/explanation/games/img` redraws every picture in the docs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from wardrop.charts import new_figure
from wardrop.games.caching.demand import FleetCaches, game_of, judge_placement, replay_caches
from wardrop.games.caching.equilibria import analyse_placement
from wardrop.games.caching.graphs import (
    basic_game,
    complete_graph,
    line_bound,
    line_graph,
    star_graph,
)
from wardrop.games.caching.topology import Topology
from wardrop.games.coupled.advice import advise, example_fleet, rest_point
from wardrop.games.coupled.loop import run_loop
from wardrop.games.coupled.planner import Planner
from wardrop.games.resource.attainment import Attainment
from wardrop.games.resource.queueing import Engine, QueueingSource
from wardrop.games.resource.split import SplitChoice, choose_split, every_split
from wardrop.games.routing.anarchy import analyse_large
from wardrop.games.routing.instances import random_frozen
from wardrop.games.routing.load_curve import load_curve
from wardrop.games.trace import Workload, generate_trace
from wardrop.slo import Slo
from wardrop.timing import builtin_timing

_INK, _WARM, _COOL, _SOFT = "#222222", "#c2410c", "#1d4ed8", "#9ca3af"


def _canvas(columns: int = 1, width: float = 6.4) -> tuple[Any, Any]:
    """A figure and its axes, in the style of the documentation."""
    figure = new_figure(width, 3.4)
    axes = figure.subplots(1, columns)
    for axis in np.atleast_1d(axes):
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e5e7eb", linewidth=0.8)
        axis.set_axisbelow(True)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def plot_poa(path: Path) -> None:
    """Price of anarchy over load: M/M/1 diverges at its bound, the saturating form has a knee."""
    figure, axes = _canvas(2, 8.2)
    for axis, family, title in zip(
        axes, ("mm1", "saturating"), ("M/M/1 beside a slow server", "Saturating pair"), strict=True
    ):
        curve = load_curve(family, 39 if family == "mm1" else 27)
        rate = [point.rate for point in curve]
        axis.plot(rate, [point.anarchy for point in curve], color=_WARM, label="price of anarchy")
        if family == "mm1":
            axis.plot(rate, [p.bound for p in curve], "--", color=_INK, label="bound")
        axis.plot(rate, [point.tolled for point in curve], color=_COOL, label="with Pigou tolls")
        axis.set(title=title, xlabel="requests per second")
        axis.set_ylim(bottom=0.95)
        axis.legend(frameon=False, loc="upper left" if family == "mm1" else "upper right")
    axes[0].set_ylabel("social cost ÷ optimum")
    _save(figure, path)


def plot_equilibria(path: Path) -> None:
    """Equilibria that best response finds against the exact optimum, over many instances."""
    figure, axis = _canvas()
    for requests, colour in ((12, _SOFT), (48, _COOL), (96, _WARM)):
        found = [analyse_large(random_frozen(seed, requests, 6), seed, 4) for seed in range(24)]
        optimum = np.array([report.optimum_cost for report in found]) / requests
        worst = np.array([report.price_of_anarchy for report in found])
        axis.scatter(optimum, worst, s=16, color=colour, label=f"{requests} requests")
    axis.axhline(1.0, color=_INK, linewidth=0.8)
    axis.set(
        title="Worst equilibrium found, 6 workers",
        xlabel="optimum, seconds a request",
        ylabel="equilibrium ÷ optimum",
    )
    axis.legend(frameon=False)
    _save(figure, path)


def plot_graphs(path: Path) -> None:
    """Price of anarchy of the basic caching game by graph size, worst rent on a grid."""
    figure, axis = _canvas()
    sizes = list(range(2, 11))
    graphs = (("line", line_graph, _WARM), ("star", star_graph, _COOL))
    for name, graph, colour in (*graphs, ("complete", complete_graph, _INK)):
        worst = [
            max(
                analyse_placement(basic_game(graph(n), alpha)).price_of_anarchy
                for alpha in np.arange(0.5, n + 2.0, 0.5).tolist()
            )
            for n in sizes
        ]
        axis.plot(sizes, worst, "o-", color=colour, markersize=4, label=name)
    axis.plot(sizes, [line_bound(n) for n in sizes], "--", color=_WARM, label="1 + √n/2")
    axis.axhline(2.0, linestyle="--", color=_COOL, label="star bound")
    axis.set(title="Selfish caching, one object", xlabel="workers", ylabel="price of anarchy")
    axis.legend(frameon=False, ncols=2)
    _save(figure, path)


def plot_placement(path: Path) -> None:
    """Cost of today's placement, the equilibrium and the optimum over HBM, on a generated trace."""
    figure, axis = _canvas()
    trace = generate_trace(Workload(rate_rps=8.0, seconds=150.0, families=40), seed=1)
    rooms = (50, 100, 150, 200, 300)
    costs: dict[str, list[float]] = {"today (LRU + KVBM)": [], "selfish": [], "optimum": []}
    for room in rooms:
        fleet = FleetCaches(Topology.grid(1, 2, 2), room, 50)
        replay = replay_caches(trace, fleet, 32, "round_robin")
        verdict = judge_placement(game_of(replay, fleet, trace), replay)
        found = (verdict.today_cost, verdict.equilibrium_cost, verdict.optimum_cost)
        for series, cost in zip(costs.values(), found, strict=True):
            series.append(1e3 * cost)
    for (name, series), colour in zip(costs.items(), (_SOFT, _WARM, _COOL), strict=True):
        axis.plot(rooms, series, "o-", color=colour, label=name, markersize=4)
    axis.set(
        title="Fetching cost of the 32 hottest blocks",
        xlabel="HBM blocks per worker",
        ylabel="ms per second of service",
    )
    axis.set_ylim(bottom=0.0)
    axis.legend(frameon=False)
    _save(figure, path)


def plot_split(splits: Mapping[int, Attainment], choice: SplitChoice, path: Path) -> None:
    """Attainment of each evaluated split, with the chosen split marked."""
    figure, axis = _canvas()
    prefill = list(splits)
    total = choice.prefill_workers + choice.decode_workers
    axis.plot(prefill, [at.ttft for at in splits.values()], "o-", color=_COOL, label="TTFT kept")
    axis.plot(prefill, [at.itl for at in splits.values()], "s-", color=_SOFT, label="ITL kept")
    axis.plot(
        prefill, [at.both for at in splits.values()], color=_WARM, linewidth=2.5, label="both"
    )
    axis.axvline(choice.prefill_workers, color=_INK, linestyle=":", label="chosen")
    axis.set(
        title=f"{total} workers to share out",
        xlabel=f"prefill workers (the other {total} − x decode)",
        ylabel="share of requests",
    )
    axis.set_xticks(prefill)
    axis.set_ylim(-0.03, 1.05)
    axis.legend(frameon=False, loc="lower center")
    _save(figure, path)


def plot_example_split(path: Path) -> None:
    """The split curve of a generated workload, with every split evaluated."""
    trace = generate_trace(Workload(rate_rps=24.0, seconds=60.0, input_mean=3_000), seed=1)
    source = QueueingSource(trace, Engine(builtin_timing()), Slo(0.5, 0.016))
    plot_split(every_split(source, 8), choose_split(source, 8), path)


def plot_loop(path: Path) -> None:
    """The prefill pool over time at 90 s delay, under a naive and the recommended gain."""
    figure, axes = _canvas(2, 8.2)
    fleet = example_fleet()
    rest = rest_point(fleet)
    advice = advise(fleet, 90.0, rest)
    runs = (
        ("naive gain", Planner(gain=1.0 / rest.slope, delay_s=90.0), _WARM),
        (
            "recommended",
            Planner(
                gain=advice.gain_workers_per_log_error,
                delay_s=90.0,
                waits=advice.wait_for_moves,
            ),
            _COOL,
        ),
    )
    for name, planner, colour in runs:
        history = run_loop(fleet, planner, max(1, rest.prefill - 2))
        minutes = history.time_s / 60.0
        axes[0].step(minutes, history.prefill, where="post", color=colour, label=name)
        axes[1].plot(minutes, history.ttft_s, color=colour, label=name)
    axes[0].set(title="Prefill workers", xlabel="minutes", ylim=(0, fleet.workers))
    axes[1].set(title="Mean TTFT, seconds", xlabel="minutes", yscale="log")
    axes[1].set_yticks([0.2, 0.5, 1.0, 2.0, 5.0], ["0.2", "0.5", "1", "2", "5"])
    axes[1].minorticks_off()
    axes[1].axhline(fleet.slo.ttft_s, color=_INK, linestyle=":", label="limit")
    for axis in axes:
        axis.axvline(fleet.step_at_s / 60.0, color=_SOFT, linewidth=0.8)
        axis.legend(frameon=False, loc="upper right")
    axes[1].set_ylim(0.15, 20.0)
    _save(figure, path)


PICTURES: dict[str, Callable[[Path], None]] = {
    "poa_over_load.png": plot_poa,
    "equilibrium_against_optimum.png": plot_equilibria,
    "caching_graphs.png": plot_graphs,
    "placement.png": plot_placement,
    "split_curve.png": plot_example_split,
    "coupled_loop.png": plot_loop,
}
