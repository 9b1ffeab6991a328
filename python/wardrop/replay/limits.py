"""What is lost to what: a run again with one limit of the fleet relaxed, and the policy in force.

Every answer is a purchase decision: a shared cache, more memory, one more worker, or a queue that
orders requests. Equal seeds give the same requests, so runs are compared in pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student_t

from wardrop.replay.fleet import Fleet
from wardrop.replay.run import Policy, simulate
from wardrop.replay.workload import ReplayError, Workload

_ENDLESS_BLOCKS = 1 << 30
"""Blocks of a memory that no workload fills."""

_QUEUE = {"max_wait_s": 1e6, "max_requests": 1 << 20, "window": 1024}
"""A queue whose bounds do not bind."""

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Saving:
    """What relaxing one limit saves.

    Attributes:
        limit: name of the limit.
        ttft: share of the mean TTFT that it saves; negative if it costs time.
        ttft_low: lower end of the 95 % interval over seeds; NaN with one seed.
        ttft_high: upper end of the interval.
        e2e: share of the mean E2E that it saves.
        e2e_low: lower end of its interval.
        e2e_high: upper end of its interval.
        seeds: repetitions.
    """

    limit: str
    ttft: float
    ttft_low: float
    ttft_high: float
    e2e: float
    e2e_low: float
    e2e_high: float
    seeds: int


def relaxed(fleet: Fleet, policy: Policy) -> dict[str, tuple[Fleet, Policy]]:
    """The fleet and the policy with one limit relaxed, by the name of the limit.

    `shared cache`: every worker finds every block that any worker has computed, at no cost.
    `unlimited KV memory`: no worker ever evicts a block or lets a request wait for memory. `pooled
    queue`: one queue first come, first served, for a policy without a queue. `shortest first`: one
    queue that prefers short prompts without regard to waiting. `one more worker`: of each kind.
    """

    def queued(kappa: float) -> Policy:
        return replace(policy, queue={"kappa": kappa, "patience": 0.0, **_QUEUE})

    fleet = replace(fleet, anarchy_window=0, sample_ms=0.0)
    engine = fleet.engine
    endless = replace(engine, num_blocks=_ENDLESS_BLOCKS, curve_blocks=engine.num_blocks)
    decode = fleet.decode_engine
    found = {
        "shared cache": (replace(fleet, shared_cache=True), policy),
        "unlimited KV memory": (
            replace(
                fleet,
                engine=endless,
                decode_engine=None
                if decode is None
                else replace(decode, num_blocks=_ENDLESS_BLOCKS, curve_blocks=decode.num_blocks),
            ),
            policy,
        ),
    }
    if policy.queue is None:
        found["pooled queue"] = (fleet, queued(0.0))
    found["shortest first"] = (fleet, queued(1e6))
    speeds = fleet.speeds
    if not fleet.is_split:
        more = replace(fleet, workers=fleet.workers + 1, speeds=(*speeds, 1.0) if speeds else ())
        return found | {"one more worker": (more, policy)}
    ahead = (*speeds[: fleet.prefill], 1.0, *speeds[fleet.prefill :]) if speeds else ()
    behind = (*speeds, 1.0) if speeds else ()
    return found | {
        "one more prefill worker": (
            replace(fleet, prefill=fleet.prefill + 1, speeds=ahead),
            policy,
        ),
        "one more decode worker": (replace(fleet, decode=fleet.decode + 1, speeds=behind), policy),
    }


def what_is_lost(
    workload: Callable[[int], Workload], fleet: Fleet, policy: Policy, seeds: Sequence[int]
) -> list[Saving]:
    """What relaxing each limit saves, over seeds.

    Args:
        workload: makes the workload of a seed.
        fleet: the fleet, with its load. Faults name workers by index, so a fleet with faults is
            refused.
        policy: the policy in force.
        seeds: one repetition per seed.

    Raises:
        ReplayError: there is no seed, the fleet has faults, or no request is complete.
        ValueError: a field is out of range.
    """
    if not seeds:
        raise ReplayError("got no seed; expected at least one repetition")
    if fleet.faults:
        raise ReplayError(
            "got a fleet with faults; expected none: a further worker would change their indices"
        )
    worlds = relaxed(fleet, policy)
    means: dict[str, list[tuple[float, float]]] = {name: [] for name in worlds}
    plain = replace(fleet, anarchy_window=0, sample_ms=0.0)
    for seed in seeds:
        requests = workload(seed)
        base = _means(requests, plain, policy, seed)
        for name, (other, under) in worlds.items():
            less = _means(requests, other, under, seed)
            means[name].append((1.0 - less[0] / base[0], 1.0 - less[1] / base[1]))
    return [_saving(name, np.asarray(shares)) for name, shares in means.items()]


def _means(workload: Workload, fleet: Fleet, policy: Policy, seed: int) -> tuple[float, float]:
    result = simulate(workload, fleet, policy, seed=seed)
    done = int(result.complete.sum())
    if not done:
        raise ReplayError(f"{policy.label} completes no request; expected a fleet that fits them")
    return result.cost.ttft_s / done, result.cost.e2e_s / done


def _saving(limit: str, shares: np.ndarray) -> Saving:
    count = int(shares.shape[0])
    mean = shares.mean(axis=0)
    if count > 1:
        quantile = float(student_t.ppf(0.5 + _CONFIDENCE / 2, count - 1))
        reach = quantile * shares.std(axis=0, ddof=1) / np.sqrt(count)
    else:
        reach = np.full(2, np.nan)
    low, high = mean - reach, mean + reach
    (ttft, e2e), (ttft_low, e2e_low), (ttft_high, e2e_high) = (
        (float(pair[0]), float(pair[1])) for pair in (mean, low, high)
    )
    return Saving(limit, ttft, ttft_low, ttft_high, e2e, e2e_low, e2e_high, count)
