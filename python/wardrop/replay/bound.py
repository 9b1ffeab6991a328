"""The lower bound on the cost of any routing, and the price of anarchy that stands on it.

The cost of a run is the sum of its requests' TTFT, or of their E2E, in seconds. The optimum is the
least cost that any routing of the same requests could have reached on the same engines. It lies
between the lower bound and the best cost that was found. So the price of anarchy lies between cost
÷ best and cost ÷ lower. docs/explanation/price-of-anarchy.md has the proofs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wardrop._core import cost_lower_bound
from wardrop.replay.fleet import Fleet
from wardrop.replay.workload import Workload

LIMITS = ("alone", "prefill", "work", "memory", "priced")
"""The limits that a bound combines, by their names in `LowerBound`."""


@dataclass(frozen=True)
class Cost:
    """Sums over requests.

    Attributes:
        ttft_s: sum of the times to first token, seconds.
        e2e_s: sum of the times to last token, seconds.
    """

    ttft_s: float
    e2e_s: float

    def weighted(self, ttft: float, e2e: float) -> float:
        """The cost under an objective that counts TTFT and E2E with these weights.

        Raises:
            ValueError: a weight is negative, or both are 0.
        """
        if ttft < 0 or e2e < 0 or ttft + e2e <= 0:
            raise ValueError(
                f"got weights ttft={ttft}, e2e={e2e}; expected at least 0, and one above 0"
            )
        return ttft * self.ttft_s + e2e * self.e2e_s


@dataclass(frozen=True)
class LowerBound:
    """What no routing can go below, and what each limit says alone.

    Attributes:
        requests: requests in the sums.
        pooled_requests: requests whose E2E the pooled limits also bound.
        all: every limit together.
        alone: each request on an idle worker, behind all blocks that an earlier request could have
            left in a cache.
        prefill: `alone`, and one server with the prefill speed of the whole fleet.
        work: `alone`, and one server that also computes every decode step.
        memory: `alone`, and one KV memory as large as the fleet's.
        priced: `alone`, and a price on the time of workers.
    """

    requests: int
    pooled_requests: int
    all: Cost
    alone: Cost
    prefill: Cost
    work: Cost
    memory: Cost
    priced: Cost


def read_bound(raw: dict[str, Any] | None) -> LowerBound | None:
    """The bound of the simulator; None where there is none."""
    if raw is None:
        return None
    sums = {name: Cost(*raw[name]) for name in ("all", *LIMITS)}
    return LowerBound(raw["requests"], raw["pooled_requests"], **sums)


def lower_bound(
    workload: Workload, fleet: Fleet, counted: Sequence[bool] | None = None
) -> LowerBound:
    """What no routing of `workload` on `fleet` can go below.

    Args:
        workload: the requests.
        fleet: the fleet, with its load.
        counted: whether the cost of each request counts; None for every request.

    Raises:
        ValueError: a field is out of range, or no bound is proven for the engines.
    """
    mask = None if counted is None else [bool(one) for one in counted]
    bound = read_bound(cost_lower_bound(workload.native, fleet.to_json(0), mask))
    assert bound is not None
    return bound
