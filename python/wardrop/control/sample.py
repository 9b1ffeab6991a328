"""What the controller sees: outcomes of the last moments, and how old its inputs are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """Outcomes and load of one short stretch of time.

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
        backlog_s: prefill seconds that wait per worker, in the queue, booked or inside the engines:
            what a request that arrives now will wait at least, before any outcome shows it.
        knee_share: load over the fleet's knee, by the learned curves; 0 where it is not known.
        knee_least: what that load is at least, by the number of arrivals it was counted from.
        knee_most: what it is at most, or was over the longest stretch counted if that is less.
        alone_s: mean time to first token of a request that meets no other, by the learned curves;
            0 where it is not known.
        span_s: length of the stretch, seconds: samples closer to each other share requests.
        answers_per_s: answers that ended per second.
        refused_per_s: requests that the queue refused per second.
        offered: prefill seconds that arrived per second and worker, over the stretch.
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
