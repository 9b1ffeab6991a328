"""What shadow fleets cost: seconds of a core per second of live traffic.

`python bench/replay/shadows.py [--per-s 40] [--seconds 600] [--arms 1,4,8] [--json OUT]`

A generated stream is told to the twin as a gateway would tell it (arrivals, outcomes, and time
every quarter of a second), as fast as it takes it. CPU time of the calling thread inside `advance`
and `push`, over the seconds of traffic; nothing rests, so that all of it is seen.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from wardrop.replay import Engine, Fleet, Shadows
from wardrop.replay.generate import generate

STEP_S = 0.25
POLICIES = (
    "toll",
    "dynamo",
    "sticky",
    "lmetric",
    "two_tier",
    "round_robin",
    "chwbl",
    "least_loaded",
)


def cell(arms: int, per_s: float, seconds: float, workers: int) -> dict[str, Any]:
    """One stream through so many shadows."""
    count = round(per_s * seconds)
    law = "groups=40,prefix=3072,suffix=1000,output=150"
    workload = generate(f"prefixes(requests={count},per_s={per_s},{law})")
    fleet = Fleet(workers=workers, engine=Engine(num_blocks=8_192))
    shadows = Shadows(fleet, {name: name for name in POLICIES[:arms]}, cpu_share=1.0)
    prompts: list[list[int]] = []
    for i in range(count):
        first, last = int(workload.block_start[i]), int(workload.block_start[i + 1])
        whole = int(workload.input_tokens[i]) // workload.block_size
        prompts.append([int(block) + 1 for block in workload.blocks[first:last][:whole]])
    advance_s = push_s = 0.0
    look_s = 0.0
    for i in range(count):
        at_s = float(workload.arrival_ms[i]) / 1e3
        while look_s <= at_s:
            start = time.thread_time()
            shadows.advance(look_s)
            advance_s += time.thread_time() - start
            look_s += STEP_S
        start = time.thread_time()
        shadows.push(i, at_s, int(workload.input_tokens[i]), prompts[i])
        push_s += time.thread_time() - start
        shadows.outcome(i, ttft_s=0.2, output_tokens=int(workload.output_tokens[i]))
    report = shadows.report()
    assert report["counts"]["dropped"] == 0, "every arrival must have been simulated"
    span_s = float(workload.arrival_ms[-1]) / 1e3
    return {
        "arms": arms,
        "workers": workers,
        "requests_per_s": count / span_s,
        "core_share_advance": advance_s / span_s,
        "core_share_push": push_s / span_s,
        "us_per_request_and_arm": 1e6 * advance_s / count / arms,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-s", type=float, default=40.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--arms", default="1,4,8")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = [
        cell(int(arms), given.per_s, given.seconds, given.workers) for arms in given.arms.split(",")
    ]
    for row in rows:
        load = f"{row['arms']} arms, {row['workers']} workers, {row['requests_per_s']:.0f} req/s"
        share, push = 100 * row["core_share_advance"], 100 * row["core_share_push"]
        each = f"{row['us_per_request_and_arm']:.1f} µs per request and arm"
        memory = f"{row['peak_rss_mb']:.0f} MB"
        print(f"{load}: {share:.3f} % of a core, pushes {push:.3f} %, {each}, {memory}")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
