"""`python -m bench.price`: run what is missing, then print the tables. Resumable.

Results go to one JSON line per simulation. A cell of 8 workers takes about a second per policy.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from bench.price.cells import OURS, STATIC, Cell, cells, workload
from bench.price.table import tables

from wardrop.replay import Policy, simulate


def figures(cell: Cell, policy: str, seed: int) -> dict[str, float]:
    """Simulate one policy in one cell."""
    result = simulate(workload(cell.trace, seed), cell.fleet(), Policy.parse(policy), seed=seed)
    summary = result.summary()
    done = result.complete
    ttft = result.ttft_ms[done] / 1e3
    long = ttft[result.input_tokens[done] >= np.quantile(result.input_tokens[done], 0.9)]
    return {
        "ttft": summary["ttft_mean_s"],
        "p99": summary["ttft_p99_s"],
        "itl": summary["itl_mean_ms"],
        "e2e": summary["e2e_mean_s"],
        "goodput": summary["attainment"],
        "long": float(np.percentile(long, 99)),
        "reuse": summary["reuse"],
        "complete": float(done.mean()),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("bench/results/price.jsonl"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after this long")
    parser.add_argument("--only-print", action="store_true")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done: dict[tuple[Cell, str, int], dict[str, float]] = {}
    if options.results.is_file():
        for line in options.results.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            done[Cell(**row["cell"]), row["policy"], row["seed"]] = row["figures"]
    end = time.monotonic() + 60 * options.minutes
    for seed in range(0 if options.only_print else options.seeds):
        for cell in cells():
            for policy in [*STATIC, *OURS]:
                if (cell, policy, seed) in done or time.monotonic() > end:
                    continue
                found = figures(cell, policy, seed)
                done[cell, policy, seed] = found
                row = {"cell": vars(cell), "policy": policy, "seed": seed, "figures": found}
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
    print(tables(done))


if __name__ == "__main__":
    main()
