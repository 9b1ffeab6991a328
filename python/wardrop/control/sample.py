"""What the controller sees: outcomes of the last interval, and how old its inputs are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Outcomes and load of one short interval.

    Attributes:
        requests: requests whose first token came in it.
        ttft_mean_s: their mean time to first token, seconds.
        ttft_p99_s: its 99 % point, seconds.
        itl_mean_s: mean time between tokens, seconds.
        e2e_mean_s: mean time to the last token, seconds.
        utilisation: prefill seconds that arrived per second and worker.
        waiting: requests in the router's queue.
        arrivals_per_s: requests that arrived per second.
        age_s: age of the oldest input, seconds.
    """

    requests: int
    ttft_mean_s: float
    ttft_p99_s: float
    itl_mean_s: float
    e2e_mean_s: float
    utilisation: float
    waiting: int = 0
    arrivals_per_s: float = 0.0
    age_s: float = 0.0
