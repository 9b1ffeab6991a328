"""Compare policies on a trace of your own, in a simulated fleet.

`wardrop.replay.load` reads Mooncake, Dynamo and Azure traces. This program writes a small one in
Mooncake's format: JSON lines with a time, two lengths and the ids of the prompt's blocks. Equal ids
mean equal blocks, so a trace needs no text. The simulator drives the production router.

Run:
    python examples/replay_trace.py [TRACE]

Expected output (the figures depend on the trace and on the version):
    1000 requests, 4 workers
    round_robin    TTFT p50 ... ms, p99 ... ms, cached ...%
    dynamo         TTFT p50 ... ms, p99 ... ms, cached ...%
    toll+queue     TTFT p50 ... ms, p99 ... ms, cached ...%
    toll with its queue reuses more than round robin: True
"""

import json
import random
import sys
import tempfile
from pathlib import Path

from wardrop import replay

BLOCK_SIZE = 512
FAMILIES = 40  # groups of requests that share a system prompt
SHARED_BLOCKS = 16  # of that system prompt


def write_trace(path: Path, requests: int = 1_000) -> None:
    """Poisson arrivals at 12 requests/s; each prompt ends in two blocks of its own."""
    rng = random.Random(1)
    at_ms = 0.0
    with path.open("w") as file:
        for number in range(requests):
            at_ms += rng.expovariate(12) * 1_000
            family = rng.randrange(FAMILIES)
            shared = [family * SHARED_BLOCKS + block for block in range(SHARED_BLOCKS)]
            own = [1_000 + 2 * number, 1_001 + 2 * number]
            row = {
                "timestamp": round(at_ms),
                "input_length": (SHARED_BLOCKS + 2) * BLOCK_SIZE,
                "output_length": 100,
                "hash_ids": shared + own,
            }
            file.write(json.dumps(row) + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder, "trace.jsonl")
        if len(sys.argv) == 1:
            write_trace(path)
        workload = replay.load(path, block_size=BLOCK_SIZE)

    fleet = replay.Fleet(workers=4)
    print(f"{len(workload)} requests, {fleet.workers} workers")
    reuse: dict[str, float] = {}  # share of prompt tokens that a worker's cache holds
    for policy in ("round_robin", "dynamo", "toll+queue"):
        figures = replay.simulate(workload, fleet, policy, seed=0).summary()
        reuse[policy] = figures["reuse"]
        print(
            f"{policy:14} TTFT p50 {figures['ttft_p50_s'] * 1_000:.0f} ms, "
            f"p99 {figures['ttft_p99_s'] * 1_000:.0f} ms, cached {figures['reuse']:.0%}"
        )
    print(
        "toll with its queue reuses more than round robin:",
        reuse["toll+queue"] > reuse["round_robin"],
    )


if __name__ == "__main__":
    main()
