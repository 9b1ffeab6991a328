"""The comparison as a terminal table and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from wardrop.replay.sweep import Cell, mean_and_range

COLUMNS = (
    ("ttft_mean_s", "TTFT s", 3),
    ("ttft_p50_s", "p50", 3),
    ("ttft_p99_s", "p99", 2),
    ("itl_mean_ms", "ITL ms", 2),
    ("itl_p99_ms", "p99", 1),
    ("e2e_mean_s", "E2E s", 2),
    ("reuse", "reuse", 3),
    ("goodput_per_s", "goodput/s", 2),
    ("load_spread", "spread", 3),
    ("output_tokens_per_s", "tokens/s", 0),
)
POA_COLUMNS = (
    ("poa", "PoA", 3),
    ("poa_paper", "paper's", 1),
    ("poa_square", "square", 2),
    ("poa_cache", "cache", 3),
    ("poa_load", "load", 3),
    ("poa_split", "split", 3),
)
HIGHER_IS_BETTER = {"reuse", "goodput_per_s", "output_tokens_per_s"}

Means = dict[str, dict[str, float]]


def columns(cells: Sequence[Cell]) -> tuple[tuple[str, str, int], ...]:
    """The columns that every cell has: those of the price of anarchy only where it was measured."""
    measured = all("poa" in cell.figures for cell in cells)
    return COLUMNS + POA_COLUMNS if cells and measured else COLUMNS


def groups(cells: Sequence[Cell]) -> dict[tuple[float, str], list[Cell]]:
    """Cells by load and policy, in the order they came."""
    grouped: dict[tuple[float, str], list[Cell]] = {}
    for cell in cells:
        grouped.setdefault((cell.load, cell.policy), []).append(cell)
    return grouped


def means(cells: Sequence[Cell]) -> dict[float, Means]:
    """Per load and policy, every column's mean over seeds."""
    found: dict[float, Means] = {}
    for (load, policy), members in groups(cells).items():
        row = {name: mean_and_range(members, name)[0] for name, _, _ in columns(cells)}
        found.setdefault(load, {})[policy] = row
    return found


def best_of(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The best value of every column among the policies of one load."""
    return {
        name: (max if name in HIGHER_IS_BETTER else min)(row[name] for row in rows.values())
        for name in next(iter(rows.values()))
    }


def table(cells: Sequence[Cell], *, closed: bool = False) -> Table:
    """Means over seeds; the best of each load is bold."""
    caption = "means over seeds; spread: variation of prefill work over workers"
    view = Table(caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    view.add_column("in flight" if closed else "load", justify="right", no_wrap=True)
    view.add_column("policy", overflow="fold", min_width=11)
    shown = columns(cells)
    for _, head, _ in shown:
        view.add_column(head, justify="right", no_wrap=True)
    for load, rows in means(cells).items():
        best = best_of(rows)
        for policy, row in rows.items():
            texts: list[str] = []
            for name, _, digits in shown:
                text = f"{row[name]:.{digits}f}"
                texts.append(f"[bold]{text}[/bold]" if row[name] == best[name] else text)
            view.add_row(f"{load:g}", policy, *texts)
        view.add_section()
    return view


def write_csv(cells: Sequence[Cell], path: Path) -> None:
    """One row per cell, every figure a column."""
    names = list(cells[0].figures)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["policy", "load", "seed", *names])
        for cell in cells:
            figures = [cell.figures[name] for name in names]
            writer.writerow([cell.policy, cell.load, cell.seed, *figures])
