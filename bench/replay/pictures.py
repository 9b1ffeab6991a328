"""Markdown tables and SVG pictures from the JSON of a sweep, for docs/replay.md.

`python bench/replay/pictures.py SWEEP.json NAME FOLDER` writes NAME-*.svg and prints the table.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from wardrop.replay.chart import Axis, lines, standalone
from wardrop.replay.report import curves_over_load
from wardrop.replay.sweep import Cell
from wardrop.replay.table import COLUMNS, best_of, means

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


def main() -> None:
    """Read a sweep, write its pictures, print its table."""
    source, name, folder = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    stored = json.loads(source.read_text())
    cells = [Cell(**cell) for cell in stored["cells"]]
    closed = stored["setting"]["closed_loop"]
    unit = stored["setting"].get("unit") or ("in flight" if closed else "load ×")
    unit = "in flight" if closed else unit
    folder.mkdir(parents=True, exist_ok=True)
    for figure, label, log in PICTURES:
        curves = curves_over_load(cells, figure)
        drawn = lines(label, curves, Axis(unit, log=closed), Axis(label, log=log))
        (folder / f"{name}-{figure}.svg").write_text(standalone(drawn, curves))
    print(table(cells, unit))


if __name__ == "__main__":
    main()
