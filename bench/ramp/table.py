"""Tables of the ramp: ratios paired by seed, with 95 % intervals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from bench.ramp.cells import TUNING_SEED, Cell
from bench.ramp.grid import DEFAULT, GRID
from bench.ramp.runs import WARDROP_FRONT, WARDROP_INSIDE, Runs, dynamo
from scipy import stats

from wardrop.demo.ramp.settings import Setting

METRICS = {"ttft_ms": "mean TTFT", "ttft_p99_ms": "p99 TTFT", "e2e_ms": "E2E"}


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios, with its interval.

    Attributes:
        mean: Geometric mean.
        low: Lower end of the 95 % interval (Student's t over the logarithms); NaN for one ratio.
        high: Upper end.
        worst: The largest ratio.
    """

    mean: float
    low: float
    high: float
    worst: float


def ratio(values: Iterable[float]) -> Ratio:
    """The geometric mean of positive ratios, with its 95 % interval."""
    logs = np.log(np.array(list(values)))
    mean = float(logs.mean())
    half = (
        float(stats.t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / np.sqrt(len(logs)))
        if len(logs) > 1
        else float("nan")
    )
    low, middle, high = (float(np.exp(x)) for x in (mean - half, mean, mean + half))
    return Ratio(middle, low, high, float(np.exp(logs.max())))


def pairs(runs: Runs, cell: Cell, ours: str, theirs: str, seeds: int, metric: str) -> list[float]:
    """Ratios ours ÷ theirs of a metric, one per seed in which both ran."""
    found: list[float] = []
    for seed in range(seeds):
        one, other = runs.find(cell, ours, seed), runs.find(cell, theirs, seed)
        if one is not None and other is not None:
            found.append(one["live"][metric] / other["live"][metric])
    return found


def print_tables(runs: Runs, best: Mapping[Cell, Setting | None], seeds: int) -> None:
    """Print the tables of everything that has run, as Markdown."""
    _print_tuning(runs, best)
    doors = [c.name for c in (WARDROP_FRONT, WARDROP_INSIDE) if _ran(runs, best, c.name, seeds)]
    for door in doors:
        for title, tuned in (("Dynamo's default", False), ("Dynamo tuned", True)):
            _print_ratios(runs, best, door, title, seeds, tuned=tuned)
    _print_means(runs, best, doors, seeds)
    _print_simulated(runs, best, doors, seeds)


def _ran(runs: Runs, best: Mapping[Cell, Setting | None], name: str, seeds: int) -> bool:
    return any(runs.find(cell, name, seed) for cell in best for seed in range(seeds))


def _rival(best: Setting | None, *, tuned: bool) -> str:
    return dynamo(best if tuned and best is not None else DEFAULT).name


def _print_tuning(runs: Runs, best: Mapping[Cell, Setting | None]) -> None:
    print("\n| mean TTFT on the tuning seed, ms |", " | ".join(s.name for s in GRID), "| best |")
    print("|---" * (len(GRID) + 2) + "|")
    for cell, chosen in best.items():
        rows = [runs.find(cell, dynamo(one).name, TUNING_SEED) for one in GRID]
        texts = ["–" if row is None else f"{row['live']['ttft_ms']:,.0f}" for row in rows]
        print(f"| {cell.name} | {' | '.join(texts)} | {chosen.name if chosen else '–'} |")


def _print_ratios(
    runs: Runs,
    best: Mapping[Cell, Setting | None],
    door: str,
    title: str,
    seeds: int,
    *,
    tuned: bool,
) -> None:
    print(f"\n| {door} ÷ {title} |", " | ".join(METRICS.values()), "|")
    print("|---" * (len(METRICS) + 1) + "|")
    total: dict[str, list[float]] = {metric: [] for metric in METRICS}
    for cell, chosen in best.items():
        texts: list[str] = []
        for metric in METRICS:
            values = pairs(runs, cell, door, _rival(chosen, tuned=tuned), seeds, metric)
            total[metric] += values
            texts.append(_text(values))
        print(f"| {cell.name} | {' | '.join(texts)} |")
    all_texts = [_text(total[metric]) for metric in METRICS]
    print(f"| all, {len(total['ttft_ms'])} pairs | {' | '.join(all_texts)} |")


def _text(values: list[float]) -> str:
    if not values:
        return "–"
    one = ratio(values)
    return f"{one.mean:.2f} ({one.low:.2f} to {one.high:.2f}), worst {one.worst:.2f}"


def _print_means(
    runs: Runs, best: Mapping[Cell, Setting | None], doors: list[str], seeds: int
) -> None:
    names = ["Dynamo's default", "Dynamo tuned", *doors]
    print("\n| mean TTFT / p99 TTFT / E2E ms, goodput %, router CPU µs |", " | ".join(names), "|")
    print("|---" * (len(names) + 1) + "|")
    for cell, chosen in best.items():
        keys = [_rival(chosen, tuned=False), _rival(chosen, tuned=True), *doors]
        texts: list[str] = []
        for key in keys:
            rows = [r["live"] for s in range(seeds) if (r := runs.find(cell, key, s)) is not None]
            if not rows:
                texts.append("–")
                continue
            means = {
                name: np.mean([row[name] for row in rows]) for name in rows[0] if name != "phases"
            }
            texts.append(
                f"{means['ttft_ms']:,.0f} / {means['ttft_p99_ms']:,.0f} / {means['e2e_ms']:,.0f}, "
                f"{100 * means['goodput']:.0f} %, {means['router_cpu_us']:,.0f}"
            )
        print(f"| {cell.name} | {' | '.join(texts)} |")
    rows = [row["live"] for row in runs.rows if "live" in row]
    if rows:
        print(
            f"\n{len(rows)} runs, {sum(r['requests'] for r in rows):,} answers, "
            f"{sum(r['errors'] for r in rows)} errors; driver at most "
            f"{max(r['late_ms'] for r in rows):.0f} ms late (p99); load average "
            f"{min(r['load'] for r in runs.rows if 'live' in r):g} to "
            f"{max(r['load'] for r in runs.rows if 'live' in r):g}"
        )


def _print_simulated(
    runs: Runs, best: Mapping[Cell, Setting | None], doors: list[str], seeds: int
) -> None:
    head = ["mean TTFT, simulator ÷ live", "Dynamo's default", "Dynamo tuned", *doors]
    print(f"\n| {' | '.join(head)} |")
    print("|---" * (3 + len(doors)) + "|")
    for cell, chosen in best.items():
        texts: list[str] = []
        for key in (_rival(chosen, tuned=False), _rival(chosen, tuned=True), *doors):
            rows = [r for s in range(seeds) if (r := runs.find(cell, key, s)) is not None]
            ratios = [
                row["simulated"]["ttft_ms"] / row["live"]["ttft_ms"]
                for row in rows
                if row["simulated"] is not None
            ]
            texts.append(f"{ratio(ratios).mean:.2f}" if ratios else "–")
        print(f"| {cell.name} | {' | '.join(texts)} |")
