"""The comparison of policies as terminal tables and as CSV."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
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
    ("poa_ttft", "PoA TTFT", 2),
    ("poa_e2e", "PoA E2E", 2),
    ("decision_loss", "per decision", 3),
    ("poa_paper", "paper's", 1),
    ("poa_square", "square", 2),
)
Column = tuple[str, str, int]
"""Name of a figure, its heading, and its decimal places."""

HIGHER_IS_BETTER = {"reuse", "goodput_per_s", "output_tokens_per_s"}

Means = dict[str, dict[str, float]]


def columns(cells: Sequence[Cell]) -> tuple[Column, ...]:
    """The columns that every cell has; the price of anarchy only where every cell measured it."""
    measured = [
        column for column in POA_COLUMNS if all(column[0] in cell.figures for cell in cells)
    ]
    return (*COLUMNS, *measured) if cells else COLUMNS


def groups(cells: Sequence[Cell]) -> dict[tuple[float, str], list[Cell]]:
    """Cells by load and policy, in their given order."""
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


def tables(cells: Sequence[Cell], *, closed: bool = False, width: int | None = None) -> list[Table]:
    """Means over seeds, with the best figure of each load in bold.

    A table that is wider than `width` is split: each part repeats the load and the policy and takes
    as many columns as fit, so that no figure is ever cut.

    Args:
        cells: at least one simulation.
        closed: whether loads are requests in flight.
        width: characters of a line; None for output that is not a terminal.

    Returns:
        Tables to print one below the other.
    """
    rest = list(columns(cells))
    parts: list[Table] = []
    while rest:
        fitting = 1
        while fitting < len(rest) and _fits(cells, rest[: fitting + 1], closed, width):
            fitting += 1
        parts.append(_table(cells, rest[:fitting], closed, width))
        rest = rest[fitting:]
    parts[-1].caption = "means over seeds; spread: variation of prefill work over workers"
    return parts


def _fits(cells: Sequence[Cell], shown: Sequence[Column], closed: bool, width: int | None) -> bool:
    if width is None:
        return True
    # The measuring console is wide, because a narrow one would report the cut width.
    console = Console(width=10_000)
    table = _table(cells, shown, closed, width)
    return Measurement.get(console, console.options, table).maximum <= width


def _table(
    cells: Sequence[Cell], shown: Sequence[Column], closed: bool, width: int | None
) -> Table:
    view = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    view.add_column("in flight" if closed else "load", justify="right", no_wrap=True)
    longest = max(len(cell.policy) for cell in cells)
    # A long policy is folded at a third of the line: the figures need the rest.
    most = longest if width is None else min(longest, max(width // 3, 11))
    view.add_column("policy", overflow="fold", min_width=most, max_width=most)
    for _, head, _ in shown:
        view.add_column(head, justify="right", no_wrap=True)
    for load, rows in means(cells).items():
        best = best_of(rows)
        for policy, row in rows.items():
            texts: list[str] = []
            for name, _, digits in shown:
                text = f"{row[name]:.{digits}f}"
                texts.append(f"[bold]{text}[/bold]" if row[name] == best[name] else text)
            view.add_row(f"{load:g}", escape(policy), *texts)
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
