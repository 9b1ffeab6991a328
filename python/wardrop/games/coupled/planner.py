"""The planner: one worker per interval, late; and the linear theory of when lateness oscillates.

Where it stands: the Γ_PD end of the loop. The paper's planner moves ±1 worker per 30 s [R]; its
rule is not known, so this one is ours [O]: it moves in proportion to the log ratio of the two
pools' pressures. Linearised, x_{k+1} = x_k − κ·x_{k−m}, with κ = gain·slope and m the dead time in
intervals. It is stable if and only if 0 < κ < 2·sin(π/(2(2m + 1))) (Levin and May 1976).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wardrop.games.routing.latency import require

INTERVAL_S = 30.0


@dataclass(frozen=True)
class Planner:
    """Moves workers between the pools.

    Attributes:
        gain: workers per unit of log pressure ratio; a move is round(gain·error), so errors below
            0.5/gain move nothing (the dead band).
        delay_s: from the signal to a worker that serves in its new pool: age of the signal,
            draining, start.
        interval_s: between decisions.
        max_step: workers a decision may move.
        waits: decide nothing while a move is under way, and one interval after it landed.
    """

    gain: float = 1.0
    delay_s: float = 0.0
    interval_s: float = INTERVAL_S
    max_step: int = 1
    waits: bool = False

    def __post_init__(self) -> None:
        require(self.gain >= 0, self.gain, "gain ≥ 0 workers per unit of log error")
        require(self.delay_s >= 0, self.delay_s, "delay ≥ 0 s")
        require(self.interval_s > 0, self.interval_s, "interval > 0 s")
        require(self.max_step >= 1, self.max_step, "max_step ≥ 1 worker")

    def move(self, error: float) -> int:
        """Workers to add to the prefill pool: round(gain·error) within ±max_step."""
        return max(-self.max_step, min(self.max_step, round(self.gain * error)))

    @property
    def dead_intervals(self) -> int:
        """m: decisions taken before the first one's effect is seen."""
        return math.ceil(self.delay_s / self.interval_s)


def pressure_error(ttft_s: float, itl_s: float, ttft_limit_s: float, itl_limit_s: float) -> float:
    """ln(TTFT/limit) − ln(ITL/limit): above 0 the prefill pool is the tighter one. Ours [O]."""
    least = 1e-6
    tighter = math.log(max(ttft_s, least) / ttft_limit_s)
    return tighter - math.log(max(itl_s, least) / itl_limit_s)


def critical_gain(slope: float, dead_intervals: int) -> float:
    """2·sin(π/(2(2m + 1)))/slope: the gain at which the linear loop starts to ring.

    Args:
        slope: fall of the error per worker added to the prefill pool, > 0.
        dead_intervals: m ≥ 0.

    Source: Levin and May 1976, for x_{k+1} = x_k − κ·x_{k−m}. Valid near the fixed point only.
    """
    require(slope > 0, slope, "slope > 0: more prefill workers must lower the error")
    require(dead_intervals >= 0, dead_intervals, "dead_intervals ≥ 0")
    return 2.0 * math.sin(math.pi / (2 * (2 * dead_intervals + 1))) / slope


def spectral_radius(loop_gain: float, dead_intervals: int) -> float:
    """Largest |z| with z^(m+1) − z^m + κ = 0: below 1 the linear loop settles."""
    polynomial = np.zeros(dead_intervals + 2)
    polynomial[0] = 1.0
    polynomial[1] -= 1.0
    polynomial[-1] += loop_gain
    return float(np.abs(np.roots(polynomial)).max())
