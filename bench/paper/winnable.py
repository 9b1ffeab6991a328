"""The price of anarchy where routing matters: traces, split fleets, mixed prompt lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from bench.paper.drawing import axes, colour, save
from bench.paper.ranks import Ranks, ranks, ranks_text, run_figures
from bench.paper.settings import SHARED, phased, timing, write
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from wardrop.replay import Engine, Fleet, Policy, Workload, load, restart, simulate, spread

POLICIES = {
    "round_robin": Policy("round_robin"),
    "dynamo": Policy("dynamo"),
    "paper": Policy("paper", {"enter": [3.0, 10.0]}),
    "sticky": Policy("sticky", {"min_share": 0.3}),
    "toll": Policy("toll"),
    "toll+queue": Policy.parse("toll+queue"),
    "with controller": Policy.parse("toll+queue+controller"),
}
FIGURES = ("ttft_mean_s", "ttft_p99_s", "itl_mean_ms", "e2e_mean_s", "attainment", "reuse")
ANARCHY = (
    "poa_ttft",
    "poa_e2e",
    "decode_poa_paper",
    "decision_loss",
    "decision_loss_low",
    "decision_loss_high",
    "poa_paper",
    "poa_square",
    "decision_cache",
    "decision_load",
)
MORE = ("decision_split", "model_error")


def places() -> dict[str, tuple[Callable[[int], Workload], Fleet, str]]:
    """By name: the workload of a seed, the fleet, and the load (below or over the knee)."""
    traces = SHARED / "traces"
    conversation = load(traces / "mooncake_conversation_0_30min.jsonl.gz").part(0, 0.4)
    code = load(traces / "claude_code_dev48.jsonl.zst").part(0, 0.4)
    engine = Engine(timing=timing("70B"))
    whole = Fleet(workers=8, engine=engine, anarchy_window=64)
    split = Fleet.split(4, 4, engine=engine, anarchy_window=64)

    def talk(seed: int) -> Workload:
        return spread(conversation, seed)

    def agents(seed: int) -> Workload:
        # As recorded, then with new start times: a new seed for ties alone would give the same run.
        return restart(code, seed) if seed else code

    def mixed(seed: int) -> Workload:
        # A few long prompts among many short ones: 64 to some 20,000 tokens.
        shape = {"groups": 300, "prefix": 1024, "suffix": 1024, "output": 128, "spread": 1.2}
        return phased((45.0,), 60.0, seed, **shape)

    return {
        "conversation × 2, 8 workers": (talk, whole.with_load(rate=2.0), "below"),
        "conversation × 4.5, 8 workers": (talk, whole.with_load(rate=4.5), "over"),
        "conversation × 3, 4P/4D": (talk, split.with_load(rate=3.0), "over"),
        "claude_code × 3, 8 workers": (agents, whole.with_load(rate=3.0), "below"),
        "claude_code × 10, 8 workers": (agents, whole.with_load(rate=10.0), "over"),
        "claude_code × 6, 4P/4D": (agents, split.with_load(rate=6.0), "over"),
        "mixed lengths, 4P/4D": (mixed, split, "over"),
    }


def run(seeds: int) -> dict[str, Any]:
    """Every place and policy; means over seeds, and τ between each index and each latency."""
    rows: list[dict[str, Any]] = []
    taus: dict[str, Ranks] = {}
    for place, (workload, fleet, where) in places().items():
        made = [workload(seed) for seed in range(seeds)]
        of_seed: list[list[dict[str, float]]] = [[] for _ in made]
        for label, policy in POLICIES.items():
            runs = [
                run_figures(simulate(one, fleet, policy, seed=seed))
                for seed, one in enumerate(made)
            ]
            for kept, figures in zip(of_seed, runs, strict=True):
                kept.append(figures)
            means = {
                key: float(np.mean([figures[key] for figures in runs]))
                for key in (*FIGURES, *ANARCHY, *MORE)
            }
            each = [figures["ttft_mean_s"] for figures in runs]
            means |= {"ttft_least_s": min(each), "ttft_most_s": max(each)}
            rows.append({"place": place, "where": where, "policy": label, **means})
            print(
                f"{place:32} {label:16} TTFT {means['ttft_mean_s']:.3f} s "
                f"({min(each):.3f} to {max(each):.3f}), p99 "
                f"{means['ttft_p99_s']:.3f} s, E2E {means['e2e_mean_s']:.3f} s, ÷ lower "
                f"{means['poa_ttft']:.2f}, {means['poa_e2e']:.2f}, PoA-hat "
                f"{means['decode_poa_paper']:.2f}, decision loss {means['decision_loss']:.3f}",
                flush=True,
            )
        taus[place] = ranks(of_seed)
        print(f"{place:32} {ranks_text(taus[place])}", flush=True)
    found = {"seeds": seeds, "rows": rows, "ranks": taus}
    write("winnable", found)
    return found


def _colour(label: str) -> str:
    return colour("toll+queue" if label == "with controller" else label)


def draw(found: dict[str, Any]) -> None:
    """The parts of the decision loss, the mean TTFT, cost over the bound, and PoA-hat."""
    rows = found["rows"]
    names = list(dict.fromkeys(row["place"] for row in rows))
    figure, grid = axes(4, len(names), width=2.2, height=2.3)
    for column, place in enumerate(names):
        here = [row for row in rows if row["place"] == place]
        at = np.arange(len(here))
        cache = np.asarray([100 * row["decision_cache"] for row in here])
        waits = np.asarray([100 * row["decision_load"] for row in here])
        top, bottom = grid[0, column], grid[1, column]
        top.barh(at - 0.2, cache, 0.4, color="#4c72b0", label="prefill done again")
        top.barh(at + 0.2, waits, 0.4, color="#c44e52", label="waiting")
        bottom.barh(
            at, [row["ttft_mean_s"] for row in here], color=[_colour(r["policy"]) for r in here]
        )
        over, hat = grid[2, column], grid[3, column]
        over.barh(at - 0.2, [row["poa_ttft"] for row in here], 0.4, color="#8172b3", label="TTFT")
        over.barh(at + 0.2, [row["poa_e2e"] for row in here], 0.4, color="#ccb974", label="E2E")
        hat.barh(at, [row["decode_poa_paper"] for row in here], color="#888888")
        for axis, keys in ((bottom, ("ttft_mean_s",)), (over, ("poa_ttft", "poa_e2e"))):
            values = [row[key] for row in here for key in keys]
            if max(values) > 8 * min(values):
                axis.set_xscale("log")
                steps = (1.0, 2.0, 5.0) if max(values) < 50 * min(values) else (1.0,)
                axis.xaxis.set_major_locator(LogLocator(subs=steps))
                axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
                axis.xaxis.set_minor_formatter(NullFormatter())
        labels = [row["policy"] for row in here] if column == 0 else [""] * len(here)
        for axis in grid[:, column]:
            axis.set_yticks(at, labels, fontsize=7)
            axis.invert_yaxis()
            axis.tick_params(axis="x", labelsize=7)
        top.set_title(place.replace(", ", "\n"), fontsize=8)
        top.axvline(0, color="k", lw=0.6)
        top.set_xlabel("% of cost lost", fontsize=7)
        bottom.set_xlabel("mean TTFT, s", fontsize=7)
        over.set_xlabel("cost ÷ lower bound", fontsize=7)
        hat.set_xlabel("PoA-hat", fontsize=7)
    grid[0, 0].legend(fontsize=6)
    grid[2, 3].legend(fontsize=6, loc="lower right")
    save(figure, "winnable")
