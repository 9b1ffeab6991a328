"""`python -m bench.price`: run missing simulations, then print the tables. Resumable.

Static rules are tuned for every cell and metric on seed 0 over the whole grid; the winners, three
well-known defaults and this router's policies are then judged on all seeds. `knees` measures the
knees that `knees.json` lacks; `export` writes the means of every cell;
`hindsight` compares one choice for all cells with the best choice for each cell.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from bench.price.cells import KNEES, cells, families, knees
from bench.price.goals import goals
from bench.price.hindsight import hindsight
from bench.price.rules import KIND_OURS, OURS, static_rules
from bench.price.runs import Runs
from bench.price.table import tables, worst

WHAT = ["all", "static", "ours", "print", "export", "knees", "hindsight"]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=WHAT)
    parser.add_argument("--results", type=Path, default=Path("bench/results/price.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--cells", default="", help="only those with this in their name")
    parser.add_argument("--worst", help="a policy whose worst cells are listed")
    options = parser.parse_args()
    what = options.what or "all"
    if what == "knees":
        known = knees()
        rows = [
            {"family": asdict(family), "rate": known.get(family) or family.knee()}
            for family in families()
        ]
        KNEES.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        return
    runs = Runs(options.results, options.minutes)
    seeds = range(options.seeds)
    chosen = [cell for cell in cells() if options.cells in cell.name]
    if what in ("all", "static"):
        for cell in chosen:
            runs.run(cell, static_rules(cell.family.is_kind), (0,))
            runs.run(cell, runs.contenders(cell), seeds)
    if what in ("all", "ours"):
        for cell in chosen:
            runs.run(cell, KIND_OURS if cell.family.is_kind else OURS, seeds)
    if what == "hindsight":
        print(hindsight(runs, options.seeds))
        return
    if what == "export":
        runs.export(options.results.with_suffix(".json"))
    print(tables(runs, options.seeds))
    print(goals(runs, options.seeds))
    if options.worst:
        print(worst(runs, options.worst, options.seeds))


if __name__ == "__main__":
    main()
