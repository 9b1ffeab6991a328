"""Markdown tables and SVG pictures from the JSON of a sweep, for docs/reports/replay.md.

`python bench/replay/pictures.py SWEEP.json NAME FOLDER` writes NAME-*.svg, NAME.md (every figure),
and prints the tables of docs/reports/replay.md: policies down, loads across, with half the range
over seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wardrop.replay.chart import Axis, lines, standalone
from wardrop.replay.report import curves_over_load
from wardrop.replay.sweep import Cell, mean_and_range
from wardrop.replay.table import COLUMNS, HIGHER_IS_BETTER, best_of, groups, means

PICTURES = (
    ("ttft_mean_s", "mean time to first token, s", True),
    ("goodput_per_s", "goodput, requests/s", False),
    ("reuse", "prompt tokens served from cache, share", False),
    ("itl_mean_ms", "mean time between tokens, ms", False),
)


def table(cells: list[Cell], unit: str) -> str:
    """Means over seeds, the best of each load in bold."""
    heads = [unit, "policy", *(head for _, head, _ in COLUMNS)]
    rows = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for load, policies in means(cells).items():
        best = best_of(policies)
        for policy, row in policies.items():
            texts: list[str] = []
            for name, _, digits in COLUMNS:
                text = f"{row[name]:.{digits}f}"
                texts.append(f"**{text}**" if row[name] == best[name] else text)
            rows.append(f"| {load:g} | `{policy}` | {' | '.join(texts)} |")
    return "\n".join(rows)


MATRICES = (
    ("ttft_mean_s", "mean TTFT, s", 3),
    ("ttft_p99_s", "p99 TTFT, s", 2),
    ("e2e_mean_s", "mean E2E, s", 2),
    ("goodput_per_s", "goodput, requests/s", 2),
)


def matrix(cells: list[Cell], figure: str, label: str, digits: int, unit: str) -> str:
    """One figure: mean over seeds and half its range; the best of each load in bold."""
    grouped = groups(cells)
    loads = sorted({load for load, _ in grouped})
    policies = list(dict.fromkeys(policy for _, policy in grouped))
    best = max if figure in HIGHER_IS_BETTER else min
    lines = [
        f"| {label} | {' | '.join(f'{unit} {load:g}' for load in loads)} |",
        f"|{'---|' * (len(loads) + 1)}",
    ]
    found = {key: mean_and_range(members, figure) for key, members in grouped.items()}
    leads = {load: best(found[load, policy][0] for policy in policies) for load in loads}
    for policy in policies:
        texts: list[str] = []
        for load in loads:
            mean, low, high = found[load, policy]
            text = f"{mean:,.{digits}f}"
            # Digits beyond the agreement of the seeds carry no information.
            if high > low:
                text += f" ± {(high - low) / 2:,.{digits}f}"
            texts.append(f"**{text}**" if mean == leads[load] else text)
        lines.append(f"| `{policy}` | {' | '.join(texts)} |")
    return "\n".join(lines)


def main() -> None:
    """Read a sweep, write its pictures, print its table."""
    source, name, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    stored = json.loads(source.read_text())
    cells = [Cell(**cell) for cell in stored["cells"]]
    closed = stored["setting"]["closed_loop"]
    unit = stored["setting"].get("unit") or ("in flight" if closed else "load ×")
    unit = "in flight" if closed else unit
    folder.mkdir(parents=True, exist_ok=True)
    loads = [cell.load for cell in cells]
    for figure, label, log in PICTURES:
        curves = curves_over_load(cells, figure)
        spread = closed or max(loads) > 1_000
        drawn = lines(
            label, curves, Axis(unit, log=spread and min(loads) > 0), Axis(label, log=log)
        )
        (folder / f"{name}-{figure}.svg").write_text(standalone(drawn, curves))
    (folder / f"{name}.md").write_text(f"# Every figure: {name}\n\n{table(cells, unit)}\n")
    for figure, label, digits in MATRICES:
        print(f"\n{matrix(cells, figure, label, digits, unit)}")


if __name__ == "__main__":
    main()
