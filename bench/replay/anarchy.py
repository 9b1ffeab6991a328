"""The price of anarchy of ten policies at six loads: does it rank them, and how near is the bound?

`python -m bench.replay.anarchy OUT [--kind NAME …] [--report FILE]
[--picture FILE]`

Resumable: finished simulations are in OUT/KIND.jsonl and are not run again. Every load is a share
of the knee, which is where the yardstick's mean TTFT is three times that of an idle fleet. The
table has a row per kind of traffic and load. It shows Kendall's τ between an index and the mean E2E
(or TTFT) of the policies, and how far the best cost is above the lower bound.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from bench.price.cells import KNEE_TTFT, SHARED, YARDSTICK, trace
from scipy.stats import kendalltau

from wardrop.replay import Engine, Fleet, Policy, Workload, load_timing, simulate
from wardrop.replay.anarchy import POA_WINDOW
from wardrop.replay.generate import generate
from wardrop.replay.sweep import Cell, Plan, sweep

POLICIES = (
    *("round_robin", "least_loaded", "power_of_two", "dynamo", "lmetric", "two_tier"),
    *("sticky", "chwbl", "toll", "toll+queue"),
)
SHARES = (0.3, 0.5, 0.7, 1.0, 1.3, 1.6)
"""Loads as shares of the knee."""

INDEXES = ("poa", "decision_loss", "poa_paper")
"""Indexes that are compared; `poa` stands for `poa_ttft` and `poa_e2e`."""


@dataclass(frozen=True)
class Kind:
    """A kind of traffic and its fleet.

    Attributes:
        workload: makes the requests.
        fleet: the fleet at rate 1.
    """

    workload: Callable[[], Workload]
    fleet: Fleet


def kinds() -> dict[str, Kind]:
    """Both recorded traces and every generator but `paper`, which `bench.paper` runs."""
    timing = load_timing(SHARED / "timing" / "llama70b_tp4_b200.npz")
    engine = Engine(timing=timing, num_blocks=4_096)
    fleet = Fleet(workers=8, engine=engine)
    large = replace(fleet, engine=replace(engine, num_blocks=16_384))
    small = Fleet(workers=8, engine=Engine(num_blocks=1_024))
    return {
        "long documents": Kind(lambda: trace("conversation").part(0, 0.25), fleet),
        "coding agents": Kind(lambda: trace("claude_code").part(0, 0.25), large),
        "shared prefixes": Kind(lambda: generate("prefixes(requests=1500,per_s=20)"), small),
        "conversations": Kind(lambda: generate("agents(sessions=150,per_s=2,turns=8)"), fleet),
        "bursts": Kind(lambda: generate("bursts(requests=1500,per_s=20)"), small),
        "phases": Kind(lambda: generate("phases(requests=1500,per_s=20)"), small),
        "agent loops": Kind(lambda: generate("agent_loops(sessions=600,max_calls=10)"), fleet),
        "support bots": Kind(lambda: generate("support(requests=1500)"), fleet),
        "questions on documents": Kind(lambda: generate("documents(count=100)"), fleet),
        "crowds": Kind(lambda: generate("crowds(requests=1500)"), fleet),
        "mixed tenants": Kind(lambda: generate("tenants(requests=1500)"), fleet),
    }


def knee(kind: Kind) -> float:
    """The rate at the knee, within 5 %."""
    requests = kind.workload()

    def ttft_s(rate: float) -> float:
        found = simulate(requests, replace(kind.fleet, rate=rate), Policy.parse(YARDSTICK))
        return found.summary()["ttft_mean_s"]

    limit_s = KNEE_TTFT * ttft_s(0.05)
    low, high = 0.05, 60.0
    while high / low > 1.05:
        middle = float(np.sqrt(low * high))
        low, high = (low, middle) if ttft_s(middle) > limit_s else (middle, high)
    return low


def run(name: str, kind: Kind, out: Path) -> list[Cell]:
    """Every policy at every load."""
    knees = out / "knees.json"
    known: dict[str, float] = json.loads(knees.read_text()) if knees.is_file() else {}
    if name not in known:
        known[name] = knee(kind)
        knees.write_text(json.dumps(known, indent=1))
    requests = kind.workload()
    plan = Plan(
        lambda _: requests,
        replace(kind.fleet, anarchy_window=POA_WINDOW),
        [Policy.parse(text) for text in POLICIES],
        [round(share * known[name], 4) for share in SHARES],
        [0],
    )
    return sweep(plan, resume=out / f"{name.replace(' ', '_')}.jsonl")


def rows(name: str, cells: list[Cell]) -> list[dict[str, Any]]:
    """One row per load: τ of every index, and the best cost over the lower bound."""
    found: list[dict[str, Any]] = []
    loads = list(dict.fromkeys(cell.load for cell in cells))
    for load, share in zip(loads, SHARES, strict=True):
        here = [cell.figures for cell in cells if cell.load == load]
        row: dict[str, Any] = {"kind": name, "load": load, "share": share}
        for cost in ("ttft", "e2e"):
            paid = [figures[f"{cost}_mean_s"] for figures in here]
            for index in INDEXES:
                key = f"poa_{cost}" if index == "poa" else index
                values = [figures[key] for figures in here]
                row[f"tau_{index}_{cost}"] = float(kendalltau(values, paid).statistic)
            prices = [figures[f"poa_{cost}"] for figures in here]
            row[f"least_{cost}"], row[f"most_{cost}"] = min(prices), max(prices)
            row[f"best_{cost}"] = POLICIES[int(np.argmin(prices))]
        row["complete"] = min(figures["completed"] for figures in here)
        found.append(row)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| traffic | load ÷ knee | τ of cost ÷ lower: TTFT, E2E | τ of the decision loss | "
        "τ of PoA-hat | cost ÷ lower of the best policy: TTFT, E2E | of the worst: TTFT, E2E |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found:
        pairs = [
            f"{row[f'tau_{index}_ttft']:+.2f}, {row[f'tau_{index}_e2e']:+.2f}" for index in INDEXES
        ]
        ends = [f"{row[f'{end}_ttft']:.2f}, {row[f'{end}_e2e']:.2f}" for end in ("least", "most")]
        cells = (row["kind"], f"{row['share']:g}", *pairs, *ends)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(cells: dict[str, list[Cell]], path: Path) -> None:
    """Cost ÷ lower bound by E2E over load: one panel per kind of traffic."""
    from bench.paper.drawing import axes, colour, plt

    across = 4
    figure, grid = axes(-(-len(cells) // across), across, width=3.4, height=2.8)
    for panel, (name, found) in zip(grid.ravel(), cells.items(), strict=False):
        for policy in POLICIES:
            prices = [cell.figures["poa_e2e"] for cell in found if cell.policy == policy]
            is_ours = policy in ("dynamo", "toll", "toll+queue", "round_robin", "sticky")
            style = {"color": colour(policy), "label": policy} if is_ours else {"color": "#cccccc"}
            panel.plot(SHARES, prices, marker=".", lw=1.2, zorder=2 if is_ours else 1, **style)
        panel.set(title=name, yscale="log", xlabel="load ÷ knee", ylabel="E2E ÷ lower bound")
        panel.grid(alpha=0.3)
    for empty in grid.ravel()[len(cells) :]:
        empty.set_axis_off()
    grid[0, 0].legend(fontsize=7)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(report: Path, found: list[dict[str, Any]]) -> None:
    """Put the rows into a file, in the order of the kinds; rows of other kinds stay."""
    ran = {row["kind"] for row in found}
    old = json.loads(report.read_text())["rows"] if report.is_file() else []
    every = [row for row in old if row["kind"] not in ran] + found
    order = list(kinds())
    every.sort(key=lambda row: (order.index(row["kind"]), row["share"]))
    report.write_text(json.dumps({"rows": every}, indent=1) + "\n")


def main() -> None:
    """Run the simulations that are missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", nargs="*", choices=list(kinds()), default=None)
    parser.add_argument(
        "--report", type=Path, default=None, help="JSON file; rows of kinds that do not run stay"
    )
    parser.add_argument("--picture", type=Path, default=None, help="draw the prices over load")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: list[dict[str, Any]] = []
    cells: dict[str, list[Cell]] = {}
    for name, kind in kinds().items():
        if options.kind is not None and name not in options.kind:
            continue
        cells[name] = run(name, kind, options.out)
        found += rows(name, cells[name])
        print(table(found[-len(SHARES) :]), flush=True)
    if options.picture:
        draw(cells, options.picture)
    if options.report:
        write(options.report, found)


if __name__ == "__main__":
    main()
