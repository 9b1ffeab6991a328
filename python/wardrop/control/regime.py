"""The regime of a fleet: below its knee, in transition, or saturated.

Three measures decide. All are *relative*, because absolute thresholds differ for every model:

* the time to first token over the fleet's own baseline at low load. It is smoothed over seconds,
  because the tail of a stable fleet varies by its own size from one second to the next;
* the wait that is already certain (prefill in queue and in flight), which no outcome shows yet;
* the load over the knee that the learned curves give, as far as the number of arrivals makes the
  load certain. This measure notices a surge within a second: the larger the surge, the sooner.

A regime is entered after equal samples in a row, one step at a time. It is left downwards only
after a dwell and well below its threshold. A stale sample is ignored. Too long without a fresh
sample leads back to below, so a regime cannot latch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from wardrop.control.sample import Sample

_RISE_S = 100.0
"""Seconds in which the baseline follows a fleet that has become slower."""


class Regime(IntEnum):
    """The regimes, ordered by load."""

    BELOW = 0
    TRANSITION = 1
    SATURATED = 2


@dataclass(frozen=True)
class RegimeSettings:
    """Thresholds between the regimes.

    Attributes:
        enter: multiples of the baseline p99 TTFT at which transition and saturated begin.
        leave_share: share of its TTFT threshold below which a regime is left.
        enter_knee: loads over the knee at which both begin, regardless of the TTFT.
        leave_knee_share: share of its load threshold below which a regime is left.
        smoothing_s: seconds over which the tail is smoothed.
        in_a_row: number of equal samples in a row that a change of regime needs.
        dwell_s: shortest stay in a regime, in seconds, before a step down.
        max_age_s: age in seconds from which samples are ignored.
        forget_s: seconds without a fresh sample after which the regime is below.
    """

    enter: tuple[float, float] = (3.0, 10.0)
    leave_share: float = 0.5
    enter_knee: tuple[float, float] = (0.9, 1.1)
    leave_knee_share: float = 0.8
    smoothing_s: float = 8.0
    in_a_row: int = 2
    dwell_s: float = 5.0
    max_age_s: float = 2.0
    forget_s: float = 30.0

    def __post_init__(self) -> None:
        low, high = self.enter
        if not 1.0 < low < high:
            raise ValueError(f"enter: got {self.enter}, expected 1 < transition < saturated")
        low, high = self.enter_knee
        if not 0.0 < low < high:
            raise ValueError(f"enter_knee: got {self.enter_knee}, expected transition < saturated")
        for name in ("leave_share", "leave_knee_share"):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected a share in (0, 1]")
        if not self.smoothing_s > 0.0:
            raise ValueError(f"smoothing_s: got {self.smoothing_s}, expected seconds above 0")
        if self.in_a_row < 1:
            raise ValueError(f"in_a_row: got {self.in_a_row}, expected at least 1")


class RegimeDetector:
    """Finds the regime from samples. Reads no clock: the time is an argument."""

    def __init__(self, settings: RegimeSettings | None = None) -> None:
        self.settings = settings or RegimeSettings()
        self.regime = Regime.BELOW
        self.baseline_s: float | None = None
        self.smoothed_s: float | None = None
        self._pending: Regime | None = None
        self._count = 0
        self._since_s: float | None = None
        self._fresh_s: float | None = None

    def stood_s(self, now_s: float) -> float:
        """Seconds since the regime began."""
        return 0.0 if self._since_s is None else now_s - self._since_s

    def step(self, now_s: float, sample: Sample) -> Regime:
        """Take one sample; return the regime."""
        if self._since_s is None:
            self._since_s = self._fresh_s = now_s
        nothing = sample.requests == 0 and sample.backlog_s == 0.0
        if sample.age_s > self.settings.max_age_s or nothing:
            if now_s - (self._fresh_s or now_s) > self.settings.forget_s:
                self._enter(Regime.BELOW, now_s)
                self.smoothed_s = None
            return self.regime
        span_s, self._fresh_s = now_s - (self._fresh_s or now_s), now_s
        self._learn(sample, span_s)
        verdict = self._verdict(sample)
        if verdict == self.regime:
            self._pending, self._count = None, 0
            return self.regime
        self._count = self._count + 1 if verdict == self._pending else 1
        self._pending = verdict
        stayed = verdict > self.regime or now_s - self._since_s >= self.settings.dwell_s
        if self._count >= self.settings.in_a_row and stayed:
            # One step at a time: a jump over the transition takes two steps.
            step = 1 if verdict > self.regime else -1
            self._enter(Regime(self.regime + step), now_s)
        return self.regime

    def _learn(self, sample: Sample, span_s: float) -> None:
        # A request that arrives now waits at least for the backlog.
        seen_s = max(sample.ttft_p99_s, sample.backlog_s)
        if self.smoothed_s is None or self._is_over(sample, seen_s):
            self.smoothed_s = seen_s
        weight = -math.expm1(-span_s / self.settings.smoothing_s)
        self.smoothed_s += weight * (seen_s - self.smoothed_s)
        # The baseline follows low load only: down fast, up slowly and only while below. It is at
        # least twice the mean TTFT of a lone request, so that a few cheap requests cannot ruin it.
        rise = min(1.0, span_s / _RISE_S)
        least_s = 2 * sample.alone_s
        if self.baseline_s is None:
            self.baseline_s = self.smoothed_s
        elif self.smoothed_s < self.baseline_s:
            self.baseline_s += 0.3 * (self.smoothed_s - self.baseline_s)
        elif self.regime is Regime.BELOW and sample.utilisation < 0.5:
            self.baseline_s += rise * (self.smoothed_s - self.baseline_s)
        self.baseline_s = max(self.baseline_s, least_s)

    def _is_over(self, sample: Sample, seen_s: float) -> bool:
        """Whether the surge is over: load is certainly low and nothing waits."""
        low = self.settings.leave_knee_share * self.settings.enter_knee[0]
        calm_s = self.settings.leave_share * self.settings.enter[0] * (self.baseline_s or 0.0)
        return 0.0 < sample.knee_most < low and seen_s < calm_s

    def _verdict(self, sample: Sample) -> Regime:
        if not self.baseline_s or self.smoothed_s is None:
            return Regime.BELOW
        ratio = self.smoothed_s / self.baseline_s
        # A wait as long as in saturation is no coincidence, however short its duration.
        if sample.backlog_s >= self.settings.enter[1] * self.baseline_s:
            ratio = max(ratio, self.settings.enter[0])
        found = Regime.BELOW
        for regime, late, loaded in zip(
            (Regime.TRANSITION, Regime.SATURATED),
            self.settings.enter,
            self.settings.enter_knee,
            strict=True,
        ):
            is_in = self.regime >= regime
            late *= self.settings.leave_share if is_in else 1.0
            loaded *= self.settings.leave_knee_share if is_in else 1.0
            load = sample.knee_most if is_in else sample.knee_least
            if ratio >= late or load >= loaded:
                found = regime
        return found

    def _enter(self, regime: Regime, now_s: float) -> None:
        self.regime = regime
        self._since_s = now_s
        self._pending, self._count = None, 0


def knee_load(loads: NDArray[np.float64], latencies: NDArray[np.float64]) -> float | None:
    """Load at the knee: where the second difference of aggregate latency over load is largest.

    Args:
        loads: (n,) rising loads.
        latencies: (n,) aggregate latency at each, in any unit.

    Returns:
        The load, or None with fewer than three points or without any upward bend.

    Raises:
        ValueError: loads that do not rise, or arrays of unequal length.
    """
    if loads.shape != latencies.shape or loads.ndim != 1:
        raise ValueError(
            f"got shapes {loads.shape} and {latencies.shape}; expected two equal 1-d shapes"
        )
    if loads.size < 3:
        return None
    if not (np.diff(loads) > 0).all():
        raise ValueError(f"got loads {loads[:8].tolist()}; expected loads that rise")
    slopes = np.diff(latencies) / np.diff(loads)
    bends = np.diff(slopes) / (0.5 * (loads[2:] - loads[:-2]))
    best = int(np.argmax(bends))
    return float(loads[best + 1]) if bends[best] > 1e-9 * np.abs(latencies).max() else None


def knee_utilisation(request_s: float, spread: float = 1.0, horizon_s: float = 60.0) -> float:
    """Utilisation at which waiting bends most, for requests of `request_s` prefill seconds.

    Waiting over a horizon T follows the time-dependent form of the queue (Akçelik 1991):
    `T/4 · (x − 1 + √((x − 1)² + 8·k·x/(c·T)))`. Here x is the utilisation, c = 1/`request_s` the
    capacity, and k = (1 + spread²)/2. It is the stationary queue well below 1, and the fluid queue
    above. The knee is `knee_load` of this wait.

    Args:
        request_s: mean prefill seconds of a request, above 0.
        spread: coefficient of variation of the prefill seconds.
        horizon_s: duration of a load in seconds.

    Returns:
        A utilisation of about 1; lower if few requests fill the horizon.
    """
    loads = np.linspace(0.3, 1.5, 61)
    random = 8 * 0.5 * (1 + spread**2) * loads * request_s / horizon_s
    waits = 0.25 * horizon_s * (loads - 1 + np.sqrt((loads - 1) ** 2 + random))
    knee = knee_load(loads, waits)
    return knee if knee is not None else 1.0
