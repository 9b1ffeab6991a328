"""The question: traffic, a fleet, the policy in use, an objective and its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from wardrop.replay.fleet import Fleet
from wardrop.replay.run import Policy
from wardrop.replay.tune import OBJECTIVES
from wardrop.replay.workload import ReplayError, Workload
from wardrop.slo import Slo

__all__ = ["DEFAULT", "OBJECTIVES", "Question", "candidates"]

DEFAULT = "toll+queue()"
"""What `wardrop dynamo` runs without a flag."""

_RULES = ("toll", "dynamo", "sticky(min_share=0.3)", "least_loaded", "round_robin")


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        workload: makes the workload of a seed; seed 0 is the trace as it was recorded.
        fleet: the fleet at load 1.
        running: the policy in use.
        objective: a key of `OBJECTIVES`.
        slo: limits of goodput.
        seeds: repetitions, at least 2: an interval needs a spread.
        loads: rate factors; 1 is the traffic as recorded, and must be among them.
        share: share of requests that should keep both limits, for the number of workers.
        asks_workers: whether other numbers of workers are tried.
        asks_split: whether splits into prefill and decode workers are tried.
        asks_limits: whether the fleet is tried with one limit relaxed, for the price of anarchy.

    Raises:
        ReplayError: a field is out of range; the text names it.
    """

    workload: Callable[[int], Workload]
    fleet: Fleet
    running: Policy = field(default_factory=lambda: Policy.parse("dynamo"))
    objective: str = "ttft"
    slo: Slo = field(default_factory=Slo)
    seeds: int = 3
    loads: Sequence[float] = (0.5, 1.0, 1.5)
    share: float = 0.95
    asks_workers: bool = True
    asks_split: bool = True
    asks_limits: bool = True

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ReplayError(
                f"got objective {self.objective!r}; expected one of {', '.join(OBJECTIVES)}"
            )
        if self.seeds < 2:
            raise ReplayError(f"got {self.seeds} seeds; expected at least 2, for an interval")
        if 1.0 not in self.loads or min(self.loads) <= 0:
            raise ReplayError(
                f"got the loads {', '.join(f'{load:g}' for load in self.loads)}; expected loads "
                "above 0, and 1 among them"
            )
        if not 0 < self.share < 1:
            raise ReplayError(f"got a share of {self.share:g}; expected above 0 and below 1")

    @property
    def figure(self) -> str:
        """Name of the figure that the objective reads."""
        return OBJECTIVES[self.objective]


def candidates(question: Question) -> list[Policy]:
    """The policies that are compared: the one in use first, then the default, then others.

    The price weighs TTFT by default. For another objective, the price with the weights of that
    objective is a candidate too.
    """
    texts = [DEFAULT, *_RULES]
    slo = question.slo
    weighted = {
        "e2e": "toll(ttft=0,e2e=1)+queue()",
        "itl": "toll(ttft=0,itl=1)+queue()",
        "goodput": f"toll(ttft=0,goodput=1,ttft_slo_s={slo.ttft_s:g},itl_slo_s={slo.itl_s:g})"
        "+queue()",
    }.get(question.objective)
    if weighted:
        texts.insert(1, weighted)
    policies = [question.running, *map(Policy.parse, texts)]
    return list({policy.label: policy for policy in policies}.values())
