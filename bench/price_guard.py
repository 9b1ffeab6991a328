"""False alarms of the price guard: falls on kinds of traffic whose engines hide nothing.

Eight simulated workers serve each kind of `wardrop.replay.kinds`, cold, at loads from idle to far
over the knee. Caches are large or small, and the queue is on or off. Every fall is a false alarm,
since nothing is planted. The last column is mean E2E with the guard over that without it.

    python -m bench.price_guard
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from wardrop.replay import Engine, Fleet, Policy, Result, simulate
from wardrop.replay.generate import generate

KINDS = (
    "agent_loops(sessions=40)",
    "support(requests=4000)",
    "documents(count=150)",
    "crowds",
    "tenants",
    "agents(sessions=200)",
)
RATES = (0.5, 1.0, 2.0, 4.0, 8.0)
CACHES = (4_096, 16_384)
POLICIES = ("toll", "toll+queue")
SEEDS = (0, 1)


def e2e_ms(result: Result) -> float:
    """Mean time from the arrival to the last token."""
    spans = np.asarray(result.end_ms) - np.asarray(result.arrival_ms)
    return float(spans[np.isfinite(spans)].mean())


def main() -> None:
    """Print one row per kind and policy."""
    print("| kind | policy | runs | requests | runs with a fall | decided statically | E2E |")
    print("|---|---|---|---|---|---|---|")
    for kind in KINDS:
        workloads = [generate(kind, seed=seed) for seed in SEEDS]
        for text in POLICIES:
            policy = Policy.parse(text)
            runs = fallen = decided = requests = 0
            ratios: list[float] = []
            for seed, workload in zip(SEEDS, workloads, strict=True):
                for rate in RATES:
                    for blocks in CACHES:
                        fleet = Fleet(workers=8, rate=rate, engine=Engine(num_blocks=blocks))
                        result = simulate(workload, fleet, policy, seed=seed)
                        runs += 1
                        requests += len(workload.arrival_ms)
                        decided += int(result.totals["decided_statically"])
                        if result.totals["price_falls"]:
                            fallen += 1
                            alone = replace(policy, price_guard=False)
                            bar = e2e_ms(simulate(workload, fleet, alone, seed=seed))
                            ratios.append(e2e_ms(result) / bar)
                            print(f"fell: {kind}, {text}, rate {rate:g}, {blocks}, seed {seed}")
            worst = f"{max(ratios):.2f} at worst" if ratios else "1"
            print(
                f"| `{kind}` | `{text}` | {runs} | {requests:,} | {fallen} "
                f"| {decided / requests:.2%} | {worst} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
