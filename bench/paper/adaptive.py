"""Static and adaptive policies through a load that goes over the knee and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from bench.paper.drawing import axes, colour, save
from bench.paper.ranks import ranks, ranks_text, run_figures
from bench.paper.settings import paper_policy, phased, split, timing, write

from wardrop.replay import Engine, Fleet, Policy, simulate

PHASE_S = 60.0
SHAPE = {"groups": 200, "prefix": 1024, "suffix": 2048, "output": 128}
MIXED = {"groups": 300, "prefix": 1024, "suffix": 1024, "output": 128, "spread": 1.2}
SHEDS = "the same, admission too"
INDEXES = ("poa_ttft", "poa_e2e", "poa_paper", "decode_poa_paper", "decision_loss")
FIGURES = (
    "ttft_mean_s",
    "ttft_p99_s",
    "itl_mean_ms",
    "e2e_mean_s",
    "output_tokens_per_s",
    *INDEXES,
    "attainment",
    "completed",
)


def places() -> dict[str, tuple[Fleet, tuple[float, ...], dict[str, Any]]]:
    """Fleet, rates of the phases (low, over the knee, low), prompts."""
    whole = Fleet(workers=4, engine=Engine(timing=timing("70B")), anarchy_window=64)
    return {
        "1P/5D": (split("70B", 1, 5), (5.0, 20.0, 5.0), SHAPE),
        "2P/5D": (split("70B", 2, 5), (10.0, 40.0, 10.0), SHAPE),
        "4 aggregated": (whole, (18.0, 70.0, 18.0), SHAPE),
        "4, mixed lengths": (whole, (30.0, 110.0, 30.0), MIXED),
    }


def policies(base_s: float) -> dict[str, Policy]:
    """Static policies, the paper's controller at two sets of thresholds, and this router's."""
    return {
        "dynamo": Policy("dynamo"),
        "dynamo τ 0.7": Policy("dynamo", {"router_temperature": 0.7}),
        "paper": paper_policy(base_s),
        "paper, 3 × and 10 ×": paper_policy(base_s, enter=[3.0, 10.0]),
        "sticky": Policy("sticky", {"min_share": 0.3}),
        "toll": Policy("toll"),
        "toll+queue": Policy.parse("toll+queue"),
        "toll+queue+controller": Policy.parse("toll+queue+controller"),
        SHEDS: Policy.parse("toll+queue+controller(moves=kappa|admission)"),
        "toll+queue for e2e": Policy.parse("toll(ttft=0,e2e=1)+queue"),
        "e2e, moving to ttft": Policy.parse("toll(ttft=0,e2e=1)+queue+controller(moves=objective)"),
    }


def run(seeds: int) -> dict[str, Any]:
    """Every place, policy and seed; equal seeds use the same requests."""
    found: dict[str, Any] = {"phase_s": PHASE_S, "seeds": seeds, "places": {}}
    for place, (fleet, rates, shape) in places().items():
        rows: list[dict[str, Any]] = []
        for seed in range(seeds):
            low = phased(rates[:1], PHASE_S, seed + 50, **shape)
            idle = simulate(low, replace(fleet, anarchy_window=0), "dynamo")
            base_s = float(np.percentile(idle.ttft_ms, 99)) / 1e3
            workload = phased(rates, PHASE_S, seed, **shape)
            over = (workload.arrival_ms >= PHASE_S * 1e3) & (workload.arrival_ms < 2e3 * PHASE_S)
            for label, policy in policies(base_s).items():
                result = simulate(workload, fleet, policy, seed=seed)
                figures = run_figures(result)
                row: dict[str, Any] = {key: figures[key] for key in FIGURES}
                ttft = result.ttft_ms / 1e3
                row["over_ttft_mean_s"] = float(np.nanmean(ttft[over]))
                row["over_ttft_p99_s"] = float(np.nanpercentile(ttft[over], 99))
                row["low_ttft_mean_s"] = float(np.nanmean(ttft[workload.arrival_ms < 6e4]))
                row["changes"] = [len(pool) for pool in result.regimes]
                row["moves"] = [[r.at_s, r.event, r.setting, r.after] for r in result.audit]
                row["refused_share"] = figures["failed"] / len(workload)
                rows.append({"policy": label, "seed": seed, "baseline_s": base_s, **row})
        # The bound is over complete requests, so the arm that refuses some has another bound.
        whole = [[r for r in rows if r["seed"] == s and r["policy"] != SHEDS] for s in range(seeds)]
        taus = ranks(whole)
        found["places"][place] = {"rates": rates, "rows": rows, "ranks": taus}
        keys = ("over_ttft_mean_s", "over_ttft_p99_s", "e2e_mean_s", "low_ttft_mean_s")
        for label in dict.fromkeys(row["policy"] for row in rows):
            spans = (ratios(rows, key)[label] for key in keys)
            text = ", ".join(f"{mean:.3f} [{low:.3f}, {high:.3f}]" for mean, low, high in spans)
            here = [row for row in rows if row["policy"] == label]
            refused, good = (
                100 * np.mean([row[key] for row in here]) for key in ("refused_share", "attainment")
            )
            print(
                f"{place:18}{label:24}{text}, refused {refused:.1f} %, good {good:.1f} %",
                flush=True,
            )
            means = {
                key: f"{np.mean([row[key] for row in here]):.3f}"
                for key in ("ttft_mean_s", "e2e_mean_s", *INDEXES)
            }
            print(" " * 18, means, flush=True)
        print(f"{place:18}{ranks_text(taus)}", flush=True)
    write("adaptive", found)
    return found


def ratios(rows: list[dict[str, Any]], key: str) -> dict[str, tuple[float, float, float]]:
    """Per policy, its figure over dynamo's: geometric mean, smallest and largest over seeds."""
    base = {row["seed"]: row[key] for row in rows if row["policy"] == "dynamo"}
    found: dict[str, tuple[float, float, float]] = {}
    for label in dict.fromkeys(row["policy"] for row in rows):
        shares = np.asarray([r[key] / base[r["seed"]] for r in rows if r["policy"] == label])
        found[label] = (float(np.exp(np.log(shares).mean())), shares.min(), shares.max())
    return found


def _policy(label: str) -> str:
    """The policy of an arm, for its colour."""
    return "toll+queue" if label in (SHEDS, "e2e, moving to ttft") else label.split()[0].rstrip(",")


def draw(found: dict[str, Any]) -> None:
    """Ratios to dynamo: TTFT over the knee, and E2E and the paper's estimator of the whole run."""
    keys = {
        "over_ttft_mean_s": "mean TTFT over the knee",
        "over_ttft_p99_s": "p99 TTFT over the knee",
        "e2e_mean_s": "E2E, whole run",
        "decode_poa_paper": "PoA-hat, whole run",
    }
    places = found["places"]
    figure, grid = axes(len(keys), len(places), width=3.4, height=3.0)
    for column, (place, kept) in enumerate(places.items()):
        for row, (key, title) in enumerate(keys.items()):
            axis = grid[row, column]
            shares = ratios(kept["rows"], key)
            for at, (label, (mean, least, most)) in enumerate(shares.items()):
                axis.barh(at, mean, color=colour(_policy(label)))
                axis.plot([least, most], [at, at], color="k", lw=1)
                refused = [r["refused_share"] for r in kept["rows"] if r["policy"] == label]
                if max(refused) > 0:
                    text = f"{100 * np.mean(refused):.0f} % refused"
                    axis.text(0.03, at, text, va="center", fontsize=7, color="w")
            names = list(shares) if column == 0 else [""] * len(shares)
            axis.set_yticks(range(len(shares)), names, fontsize=7)
            axis.axvline(1.0, color="k", lw=0.8, ls=":")
            axis.set_title(f"{place}\n{title} ÷ dynamo's" if row == 0 else title, fontsize=8)
            axis.invert_yaxis()
    save(figure, "adaptive")
