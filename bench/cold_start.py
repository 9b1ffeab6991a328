"""The first seconds of a router that knows no latency yet, beside Dynamo's own cost.

A simulated fleet of 8 workers serves agent sessions. The price starts from its default curves,
while the workers are as fast as the curves, ten times faster or ten times slower. The figures are
ratios to the policy `dynamo` in the same run, for requests of the first 15 and 60 s (divided by the
speed), three seeds.

    python -m bench.cold_start
"""

from __future__ import annotations

import numpy as np

from wardrop.replay import Fleet, Result, simulate
from wardrop.replay.generate import generate

SPEEDS = (0.1, 1.0, 10.0)
RATES = (2.0, 4.0, 8.0)
SEEDS = (0, 1, 2)
WINDOWS_S = (15.0, 60.0)
POLICIES = ("toll", "toll+queue")


def first_tokens_ms(result: Result, window_ms: float) -> tuple[float, float]:
    """Mean and p99 TTFT of the requests that arrive within the window."""
    arrival_ms = np.asarray(result.arrival_ms)
    ttft_ms = np.asarray(result.first_token_ms) - arrival_ms
    early = ttft_ms[(arrival_ms - arrival_ms.min() < window_ms) & np.isfinite(ttft_ms)]
    return float(early.mean()), float(np.quantile(early, 0.99))


def ratios(speed: float, window_s: float) -> dict[str, np.ndarray]:
    """By policy: an array of (rates × seeds, 2), the ratios of mean and p99 TTFT to `dynamo`."""
    found: dict[str, list[np.ndarray]] = {policy: [] for policy in POLICIES}
    for seed in SEEDS:
        workload = generate("agents(sessions=200)", seed=seed)
        for rate in RATES:
            fleet = Fleet(workers=8, rate=rate * speed, speeds=(speed,) * 8)
            window_ms = 1e3 * window_s / speed
            bar = first_tokens_ms(simulate(workload, fleet, "dynamo", seed=seed), window_ms)
            for policy in POLICIES:
                ours = first_tokens_ms(simulate(workload, fleet, policy, seed=seed), window_ms)
                found[policy].append(np.divide(ours, bar))
    return {policy: np.array(rows) for policy, rows in found.items()}


def main() -> None:
    """Print the table of the page on the price."""
    print("| speed | first | policy | mean TTFT (worst) | p99 TTFT (worst) |")
    print("|---|---|---|---|---|")
    for speed in SPEEDS:
        for window_s in WINDOWS_S:
            for policy, rows in ratios(speed, window_s).items():
                mean, p99 = np.exp(np.log(rows).mean(axis=0))
                worst_mean, worst_p99 = rows.max(axis=0)
                print(
                    f"| {speed:g} | {window_s:g} s | `{policy}` | {mean:.2f} ({worst_mean:.2f}) "
                    f"| {p99:.2f} ({worst_p99:.2f}) |"
                )


if __name__ == "__main__":
    main()
