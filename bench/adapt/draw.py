"""One picture: what the controller did in a cell, and why, beside load, regime and outcome."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from bench.adapt.cells import Cell
from bench.adapt.runs import play
from bench.adapt.settings import CONTROLLER, DEFAULT

from wardrop.control.audit import Record
from wardrop.control.sample import Sample

mpl.use("Agg")
from matplotlib import pyplot as plt

REGIMES = ("BELOW", "TRANSITION", "SATURATED")
SHADES = ("#ffffff", "#fdf3d8", "#f9dcd4")
STEP_S = 2.0


def draw(cell: Cell, path: Path, seed: int = 0) -> None:
    """Write the picture of one cell, and print what the controller did."""
    seen: list[tuple[float, Sample]] = []
    result, run = play(cell, CONTROLLER, seed, seen)
    plain, _ = play(cell, DEFAULT, seed)
    end_s = seen[-1][0]
    figure, (load, wait, setting, e2e) = plt.subplots(
        4, 1, figsize=(10, 9.5), sharex=True, layout="constrained", height_ratios=(1, 1, 0.9, 1)
    )
    own = [record for record in run.audit if record.by == "controller"]
    for axis in (load, wait, setting, e2e):
        shade(axis, own, end_s)
        for start_s in cell.starts_s[1:-1]:
            axis.axvline(start_s, color="k", lw=0.6, ls=":")
        axis.grid(visible=True, axis="y", alpha=0.3)
    at_s = np.array([at for at, _ in seen])
    load.plot(at_s, [sample.knee_share for _, sample in seen], color="#4c72b0")
    load.axhline(0.9, color="#dd8452", lw=0.8, ls="--")
    load.axhline(1.1, color="#c44e52", lw=0.8, ls="--")
    load.set_ylabel("prefill load ÷ knee")
    load.set_title(f"{cell.name}: regimes (white below, yellow transition, red saturated)")
    for start_s, phase in zip(cell.starts_s, cell.phases, strict=False):
        text = f"{phase.kind} {phase.load:g}" + (" (2 slow workers)" if phase.slow else "")
        load.text(start_s + 1, load.get_ylim()[1] * 0.93, text, fontsize=8, va="top")
    wait.plot(
        at_s, [max(s.ttft_p99_s, 1e-3) for _, s in seen], color="#c44e52", label="p99 TTFT, 2 s"
    )
    wait.plot(at_s, [max(s.backlog_s, 1e-3) for _, s in seen], color="#8172b3", label="backlog")
    wait.set_yscale("log")
    wait.set_ylabel("seconds")
    wait.legend(loc="upper right", fontsize=8)
    steps(setting, own, end_s)
    for label, one, colour in (
        ("with the controller", result, "#55a868"),
        ("without", plain, "#888888"),
    ):
        e2e.plot(*binned(one.arrival_ms / 1e3, one.e2e_ms / 1e3), color=colour, label=label)
    e2e.set_ylabel("E2E by arrival, s")
    e2e.set_xlabel("seconds")
    e2e.legend(loc="upper right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    for record in own:
        what = f"{record.event:12} {record.setting:10} {record.after}"
        print(f"{record.at_s:7.2f} {what} {record.reason}")


def shade(axis: Any, records: list[Record], end_s: float) -> None:
    """Colour the background by regime."""
    turns = [(r.at_s, str(r.after)) for r in records if r.event == "regime"]
    edges = [(0.0, REGIMES[0]), *turns, (end_s, "")]
    for (start_s, name), (stop_s, _) in pairwise(edges):
        axis.axvspan(start_s, stop_s, color=SHADES[REGIMES.index(name)], lw=0)


def steps(axis: Any, records: list[Record], end_s: float) -> None:
    """The settings over time, and the verdict of the guard at the end of each trial."""
    marks = {"kept": ("^", "#55a868"), "rolled_back": ("v", "#c44e52")}
    for name, start, colour, scale in (
        ("kappa", 10.0, "#4c72b0", 1.0),
        ("backlog_s", 1.0, "#dd8452", 10.0),
    ):
        own = [r for r in records if r.setting == name]
        moves = [r for r in own if r.event in ("change", "rolled_back")]
        at_s = [0.0, *(r.at_s for r in moves), end_s]
        values = [start, *(float(r.after) for r in moves)]
        label = "κ" if name == "kappa" else "room (backlog_s × 10)"
        shown = np.array([*values, values[-1]]) * scale
        axis.step(at_s, shown, where="post", color=colour, label=label)
        for record in own:
            if record.event in marks:
                marker, tint = marks[record.event]
                axis.plot(record.at_s, float(record.after) * scale, marker, color=tint, ms=8)
    axis.set_ylabel("setting")
    axis.set_ylim(0, 34)
    axis.legend(loc="upper right", fontsize=8)
    axis.text(
        0.01, 0.04, "▲ kept by the guard   ▼ rolled back", transform=axis.transAxes, fontsize=8
    )


def binned(at_s: Any, values: Any) -> tuple[Any, Any]:
    """Means of `values` in bins of `STEP_S`."""
    kept = np.isfinite(values) & np.isfinite(at_s)
    bins = (at_s[kept] / STEP_S).astype(np.int64)
    sums = np.bincount(bins, weights=values[kept])
    counts = np.bincount(bins)
    filled = counts > 0
    return (np.flatnonzero(filled) + 0.5) * STEP_S, sums[filled] / counts[filled]
