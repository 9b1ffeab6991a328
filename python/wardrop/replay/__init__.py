"""Replay: traces through the production router, in front of a simulated fleet.

from wardrop.replay import Fleet, load, simulate
result = simulate(load("trace.jsonl.gz"), Fleet(workers=8), "dynamo")
result.summary()["ttft_p99_s"]
"""

from wardrop.replay.fleet import Engine, Fault, Fleet, Tier, Transfer
from wardrop.replay.run import Policy, Result, simulate
from wardrop.replay.traces import load, restart, spread
from wardrop.replay.workload import ReplayError, Workload
from wardrop.slo import Slo
from wardrop.timing import POLYNOMIAL, affine, load_timing

__all__ = [
    "POLYNOMIAL",
    "Engine",
    "Fault",
    "Fleet",
    "Policy",
    "ReplayError",
    "Result",
    "Slo",
    "Tier",
    "Transfer",
    "Workload",
    "affine",
    "load",
    "load_timing",
    "restart",
    "simulate",
    "spread",
]
