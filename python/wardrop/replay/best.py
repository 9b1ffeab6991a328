"""The best routing that a search with all requests known in advance can find.

The search starts from the placements of policies, tries orders and limits on them, and then changes
placements at random. The simulator evaluates every change, so the best cost is one that routing
can reach. Together with the lower bound it brackets the optimum.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from wardrop._core import improve_plan
from wardrop.replay.bound import LowerBound, lower_bound
from wardrop.replay.fleet import Fleet
from wardrop.replay.run import Policy, Result, simulate
from wardrop.replay.workload import ReplayError, Workload

_NO_LIMIT = 0xFFFFFFFF
_ROUND_EVALUATIONS = 200
"""Simulations of a thread between two exchanges of the best plan."""


@dataclass(frozen=True)
class Best:
    """What a search found, for one objective.

    Attributes:
        cost_s: weighted cost of the best routing found, seconds.
        policy: label of the policy with the least cost, before the search.
        policy_cost_s: cost of this policy, seconds.
        lower_s: weighted lower bound, seconds.
        bound: the lower bound by limits.
        evaluations: simulations of the search.
        plan: the best plan, None if no plan was better than the policies.
    """

    cost_s: float
    policy: str
    policy_cost_s: float
    lower_s: float
    bound: LowerBound
    evaluations: int
    plan: dict[str, Any] | None

    def price(self, cost_s: float) -> tuple[float, float]:
        """The price of anarchy of a run with this cost lies between these two figures."""
        return max(cost_s / self.cost_s, 1.0), cost_s / self.lower_s

    def figures(self) -> dict[str, Any]:
        """The plain figures: costs in seconds, and their ratios."""
        return {
            "best_s": self.cost_s,
            "policy": self.policy,
            "policy_s": self.policy_cost_s,
            "lower_s": self.lower_s,
            "best_over_lower": self.cost_s / self.lower_s,
            "evaluations": self.evaluations,
        }


def find_best(
    workload: Workload,
    fleet: Fleet,
    policies: Sequence[Policy],
    *,
    ttft: float = 0.0,
    e2e: float = 0.0,
    seconds: float = 60.0,
    seed: int = 0,
    threads: int | None = None,
    resume: Path | None = None,
) -> Best:
    """Search for the routing with the least weighted sum of TTFT and E2E.

    Args:
        workload: the requests.
        fleet: the fleet, with its load. It has no faults.
        policies: policies whose placements the search starts from.
        ttft: weight of the sum of TTFT.
        e2e: weight of the sum of E2E.
        seconds: time after which no simulation of the search begins; 0 only compares policies.
        seed: seed of the random changes.
        threads: simulations at once; all cores by default.
        resume: JSON file of the best plan; it is read first, if it exists, and written at the end.

    Raises:
        ReplayError: there is no policy, or no policy completes every request.
        ValueError: a field is out of range, or no bound is proven for the engines.
    """
    bound = lower_bound(workload, fleet)
    lower_s = bound.all.weighted(ttft, e2e)
    runs = [(policy, simulate(workload, fleet, policy, seed=seed)) for policy in policies]
    complete = [(policy, result) for policy, result in runs if result.complete.all()]
    if not complete:
        raise ReplayError(
            f"got {len(runs)} policies of which none completes every request; expected one that "
            "does: lower the load or raise the memory"
        )
    complete.sort(key=lambda pair: pair[1].cost.weighted(ttft, e2e))
    least, best_run = complete[0]
    policy_s = best_run.cost.weighted(ttft, e2e)
    starts = [_plan_of(fleet, result) for _, result in complete]
    if resume is not None and resume.is_file():
        starts.insert(0, json.loads(resume.read_text(encoding="utf-8")))
    cost_s, plan, evaluations = policy_s, None, 0
    if seconds > 0:
        cost_s, plan, evaluations = _improve(
            workload,
            replace(fleet, anarchy_window=0),
            starts,
            (ttft, e2e),
            seed=seed,
            seconds=seconds,
            threads=threads or os.cpu_count() or 1,
        )
        if resume is not None:
            resume.write_text(json.dumps(plan), encoding="utf-8")
    if cost_s >= policy_s:
        cost_s, plan = policy_s, None
    return Best(cost_s, least.label, policy_s, lower_s, bound, evaluations, plan)


def _plan_of(fleet: Fleet, result: Result) -> dict[str, Any]:
    """The placements of a run, sent on arrival."""
    return {
        "worker": result.worker.tolist(),
        "decode_worker": result.decode_worker.tolist() if fleet.is_split else [],
        "rank": np.zeros(result.worker.size).tolist(),
        "most_prefilling": _NO_LIMIT,
        "most_open": _NO_LIMIT,
        "is_strict": False,
    }


def _improve(
    workload: Workload,
    fleet: Fleet,
    starts: list[dict[str, Any]],
    weights: tuple[float, float],
    *,
    seed: int,
    seconds: float,
    threads: int,
) -> tuple[float, dict[str, Any], int]:
    """Improve the starts in turn, then the best plan with other seeds, one per thread."""
    text = fleet.to_json(seed)
    native = workload.native
    best_s, best, evaluations = float("inf"), starts[0], 0
    # The grid of the starts may take half of the time.
    first = seconds / 2 / max(-(-len(starts) // threads), 1)

    def run(job: tuple[dict[str, Any], int, tuple[int, float]]) -> tuple[str, float, int]:
        start, number, limits = job
        return improve_plan(native, text, json.dumps(start), weights, number, limits)

    with ThreadPoolExecutor(threads) as pool:
        jobs = [(start, seed, (_ROUND_EVALUATIONS, first)) for start in starts]
        left_s = seconds / 2
        while True:
            for found, cost_s, count in pool.map(run, jobs):
                evaluations += count
                if cost_s < best_s:
                    best_s, best = cost_s, json.loads(found)
            if left_s <= 0:
                return best_s, best, evaluations
            turn_s = max(min(left_s, seconds / 8), 0.1)
            left_s -= turn_s
            seed += threads
            jobs = [(best, seed + at, (10**9, turn_s)) for at in range(threads)]
