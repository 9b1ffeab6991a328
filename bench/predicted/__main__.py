"""Predicted caches in the simulated fleet: `python -m bench.predicted --timing TABLE.npz`.

Bursts of requests share a new prefix, and KV events come late: `predicted(used=beside)` is made for
this case. Each policy runs with and without prediction, at each delay and load, in pairs (equal
seeds, equal workloads). Writes `bench/results/predicted.json` and prints its rows.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wardrop.replay import Engine, Fleet, Workload, load_timing, simulate
from wardrop.replay.generate import from_lists


def new_prefixes(
    bursts: int = 60,
    every_s: float = 4.0,
    requests: int = 30,
    within_s: float = 0.5,
    prefix: int = 8192,
    own: int = 256,
    output: int = 128,
    block_size: int = 64,
    seed: int = 0,
) -> Workload:
    """Bursts with a new prefix of `prefix` tokens; each request adds `own` tokens of its own."""
    rng = np.random.default_rng(seed)
    head, tail = prefix // block_size, own // block_size
    arrivals, ids, next_id = [], [], 0
    for burst in range(bursts):
        shared = np.arange(next_id, next_id + head)
        next_id += head
        for at in np.sort(rng.uniform(0, within_s, requests)):
            arrivals.append(burst * every_s + at)
            ids.append(np.concatenate((shared, np.arange(next_id, next_id + tail))))
            next_id += tail
    count = bursts * requests
    return from_lists(
        "new_prefixes",
        np.asarray(arrivals) * 1e3,
        np.full(count, prefix + own),
        np.full(count, output),
        np.concatenate(ids),
        np.full(count, head + tail),
        block_size,
    )


def main() -> None:
    """Run every cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timing", type=Path, help="a timing table; default: the mocker's own")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("bench/results/predicted.json"))
    arguments = parser.parse_args()
    engine = Engine(timing=load_timing(arguments.timing)) if arguments.timing else Engine()
    fleet, rows = Fleet(workers=8, engine=engine), []
    shown = ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s", "reuse")
    for every_s, delay_ms in ((e, d) for e in (4.0, 0.8) for d in (0.0, 100.0, 1000.0)):
        for policy in ("toll", "dynamo", "lmetric", "sticky"):
            for added in ("", "+predicted(used=beside)"):
                cells = [
                    simulate(
                        new_prefixes(every_s=every_s, seed=seed),
                        replace(fleet, feed_delay_ms=delay_ms),
                        policy + added,
                        seed=seed,
                    ).summary()
                    for seed in range(arguments.seeds)
                ]
                means = {name: float(np.mean([cell[name] for cell in cells])) for name in shown}
                row: dict[str, Any] = {"every_s": every_s, "delay_ms": delay_ms}
                row["policy"] = policy + added
                rows.append({**row, **{name: round(mean, 4) for name, mean in means.items()}})
                print(json.dumps(rows[-1]), flush=True)
    arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
