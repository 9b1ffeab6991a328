"""Advice on a trace: which policy, settings, number of workers and split serve this traffic best.

A `Question` is traffic, a fleet, the policy in use and an objective. `gather` simulates the
question's candidates and keeps the evidence. `advise` reads the advice from the evidence.
`page` and `deployment` write the advice down.
"""

from wardrop.advise.advice import Advice, advise
from wardrop.advise.comparison import Ratio
from wardrop.advise.deployment import deployment
from wardrop.advise.evidence import Evidence, gather
from wardrop.advise.page import page
from wardrop.advise.question import OBJECTIVES, Question, candidates

__all__ = [
    "OBJECTIVES",
    "Advice",
    "Evidence",
    "Question",
    "Ratio",
    "advise",
    "candidates",
    "deployment",
    "gather",
    "page",
]
