"""The input of the controller: outcomes and load of the last seconds, and their age."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Outcomes and load of one short stretch of time.

    Attributes:
        requests: requests whose first token came in the stretch.
        ttft_mean_s: mean time to first token, seconds.
        ttft_p99_s: 99th percentile of the time to first token, seconds.
        itl_mean_s: mean time between tokens, seconds.
        e2e_mean_s: mean time to the last token, seconds.
        utilisation: prefill seconds that arrived per second and worker.
        waiting: requests in the router's queue.
        arrivals_per_s: requests that arrived per second.
        age_s: age of the oldest input, seconds.
        backlog_s: prefill seconds that wait per worker: queued, booked or inside the engines. A
            request that arrives now waits at least as long.
        knee_share: load over the knee of the fleet, by the learned curves; 0 where unknown.
        knee_least: lower bound of `knee_share`, given the number of arrivals counted.
        knee_most: upper bound of `knee_share`, at most its value over the longest stretch counted.
        alone_s: mean time to first token of a request that meets no other request, by the learned
            curves; 0 where unknown.
        span_s: length of the stretch in seconds; samples closer in time share requests.
        answers_per_s: answers that ended per second.
        refused_per_s: requests that the queue refused per second.
        offered: prefill seconds that arrived per second and worker over the whole stretch;
            `utilisation` covers its last second.
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
    backlog_s: float = 0.0
    knee_share: float = 0.0
    knee_least: float = 0.0
    knee_most: float = 0.0
    alone_s: float = 0.0
    span_s: float = 0.0
    answers_per_s: float = 0.0
    refused_per_s: float = 0.0
    offered: float = 0.0
