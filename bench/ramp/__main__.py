"""Real Dynamo with mock workers through the knee and back: Wardrop's default, Dynamo's, and tuned.

    python -m bench.ramp [--minutes 60]                             # resumable; about 80 minutes
    python -m bench.ramp --table --runs bench/results/ramp.jsonl    # the committed runs

In every cell, each setting of the grid runs first on a tuning seed. The setting with the best mean
time to first token is *Dynamo tuned* there. Then Dynamo's default, the tuned Dynamo and Wardrop
without a flag run on each judged seed, in another order for each seed. All get the same requests,
new workers and empty caches. The simulator runs the same requests under the same policy.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.ramp.cells import TUNING_SEED, Cell, cells, timing_table
from bench.ramp.grid import DEFAULT, GRID
from bench.ramp.picture import draw
from bench.ramp.runs import WARDROP_FRONT, WARDROP_INSIDE, Contender, Runs, dynamo
from bench.ramp.table import print_tables
from bench.rounds import rotated

from wardrop.demo.arms import has_native
from wardrop.demo.ramp.settings import Setting
from wardrop.dynamo.namespace import enter_or_reexec

RUNS = Path("out/ramp.jsonl")
"""Not the committed runs: with these nothing would be left to run."""


def tuned(runs: Runs, cell: Cell) -> Setting | None:
    """The best setting of the grid on the tuning seed; None until the whole grid has run."""
    rows = {one.name: runs.find(cell, dynamo(one).name, TUNING_SEED) for one in GRID}
    means = {name: row["live"]["ttft_ms"] for name, row in rows.items() if row is not None}
    if len(means) < len(GRID):
        return None
    best = min(means, key=lambda name: means[name])
    return next(one for one in GRID if one.name == best)


def judged(runs: Runs, cell: Cell, *, inside: bool) -> list[Contender]:
    """The contenders of a cell. Dynamo tuned is left out where its default won."""
    best = tuned(runs, cell)
    found = [dynamo(DEFAULT)]
    if best is not None and best is not DEFAULT:
        found.append(dynamo(best))
    return [*found, WARDROP_FRONT, *([WARDROP_INSIDE] if inside else [])]


def main() -> None:
    """Parse the command line and run, or show what has run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="file of finished runs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no later run begins")
    parser.add_argument("--seeds", type=int, default=3, help="judged seeds of every cell")
    parser.add_argument("--seconds", type=float, default=40.0, help="length of a judged ramp")
    parser.add_argument("--tuning-seconds", type=float, default=30.0, help="of a tuning ramp")
    parser.add_argument("--cells", default="", help="names with commas; all without")
    parser.add_argument("--inside", action="store_true", help="also Wardrop inside the frontend")
    parser.add_argument("--table", action="store_true", help="only show what has run")
    parser.add_argument("--picture", type=Path, help="file for the picture (.png)")
    given = parser.parse_args()
    wanted = [c for c in cells() if not given.cells or c.name in given.cells.split(",")]
    if not wanted:
        parser.error(f"--cells: got {given.cells!r}, expected {', '.join(c.name for c in cells())}")
    if given.inside and not has_native():
        parser.error("--inside: the native frontend is not installed; `make frontend` builds it")
    if not given.table:
        enter_or_reexec()
    with tempfile.TemporaryDirectory(prefix="wardrop-ramp-") as folder:
        runs = Runs(given.runs, timing_table(Path(folder)), given.minutes, _print)
        if not given.table:
            for cell in wanted:
                for setting in GRID:
                    runs.run(cell, dynamo(setting), TUNING_SEED, given.tuning_seconds)
            for seed in range(given.seeds):
                for cell in wanted:
                    for contender in rotated(judged(runs, cell, inside=given.inside), seed):
                        runs.run(cell, contender, seed, given.seconds)
    best = {cell: tuned(runs, cell) for cell in wanted}
    print_tables(runs, best, given.seeds)
    if given.picture is not None:
        draw(runs, best, given.seeds, given.picture)


def _print(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
