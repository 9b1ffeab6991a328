"""`python -m bench.adapt`: run what is missing, then print the tables. Resumable.

`run` plays in every cell the static settings, the controller and the schedules of the oracle's
search; `print` only prints the committed figures; `draw` writes the picture of one cell.
Needs `WARDROP_SHARED` (timing tables), except with `--small`, two cells of a few seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bench.adapt.cells import cells, small
from bench.adapt.draw import draw
from bench.adapt.oracle import search
from bench.adapt.runs import Runs
from bench.adapt.settings import CONTROLLER, STATIC
from bench.adapt.table import by_cell, overall, schedules

RESULTS = Path("bench/results/adapt.json")
PICTURE = Path("docs/reports/img/adaptive.png")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", default="run", choices=["run", "print", "draw"])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--cells", default="", help="only cells with this in their name")
    parser.add_argument("--small", action="store_true", help="two cells of a few seconds")
    options = parser.parse_args()
    suite = small() if options.small else cells()
    chosen = [cell for cell in suite if options.cells in cell.name]
    if not chosen:
        parser.error(f"--cells: got {options.cells}; no cell has it in its name")
    if options.what == "draw":
        draw(chosen[0], options.picture)
        return
    runs = Runs(options.results, options.minutes)
    if options.what == "run":
        for cell in chosen:
            for arm in (*STATIC, CONTROLLER):
                for seed in range(options.seeds):
                    runs.run(cell, arm, seed)
        for cell in chosen:
            search(runs, cell, options.seeds)
    for table in (overall, by_cell, schedules):
        print(table(runs, chosen, options.seeds))


if __name__ == "__main__":
    main()
