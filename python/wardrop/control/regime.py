"""Below, transition, saturated: where the fleet stands against its own knee.

The measure is *relative*: the smoothed p99 TTFT over the fleet's own baseline at low load, and the
prefill utilisation. Absolute thresholds mean something else for every model, so there are none.
Hysteresis (leave at 0.8 of the threshold of entry), a count of equal samples in a row in both
directions, and a dwell keep it from flapping; a stale sample is not looked at, and too long without
a fresh one leads back to below, so the regime cannot latch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from wardrop.control.sample import Sample


class Regime(IntEnum):
    """Ordered by load."""

    BELOW = 0
    TRANSITION = 1
    SATURATED = 2


@dataclass(frozen=True)
class RegimeSettings:
    """When a regime changes.

    Attributes:
        enter: multiples of the baseline p99 TTFT at which transition and saturated begin.
        leave_share: a regime is left below this share of its threshold.
        saturated_utilisation: prefill utilisation that means saturated whatever the TTFT.
        smoothing: weight of a new sample in the smoothed p99.
        in_a_row: equal verdicts in a row that a change needs.
        dwell_s: shortest stay.
        max_age_s: older samples are not looked at.
        forget_s: without a fresh sample for this long: below.
    """

    enter: tuple[float, float] = (3.0, 10.0)
    leave_share: float = 0.8
    saturated_utilisation: float = 0.98
    smoothing: float = 0.3
    in_a_row: int = 3
    dwell_s: float = 5.0
    max_age_s: float = 2.0
    forget_s: float = 30.0

    def __post_init__(self) -> None:
        low, high = self.enter
        if not 1.0 < low < high:
            raise ValueError(f"enter: got {self.enter}, expected 1 < transition < saturated")
        if not 0.0 < self.leave_share <= 1.0 or not 0.0 < self.smoothing <= 1.0:
            raise ValueError("leave_share and smoothing: expected shares in (0, 1]")
        if self.in_a_row < 1:
            raise ValueError(f"in_a_row: got {self.in_a_row}, expected at least 1")


class RegimeDetector:
    """Feeds on samples, tells the regime. No clock: the time is an argument."""

    def __init__(self, settings: RegimeSettings | None = None) -> None:
        self.settings = settings or RegimeSettings()
        self.regime = Regime.BELOW
        self.baseline_s: float | None = None
        self.smoothed_s: float | None = None
        self._pending: Regime | None = None
        self._count = 0
        self._since_s: float | None = None
        self._fresh_s: float | None = None

    def step(self, now_s: float, sample: Sample) -> Regime:
        """Takes one sample in; returns the regime now."""
        if self._since_s is None:
            self._since_s = self._fresh_s = now_s
        if sample.age_s > self.settings.max_age_s or sample.requests == 0:
            if now_s - (self._fresh_s or now_s) > self.settings.forget_s:
                self._enter(Regime.BELOW, now_s)
            return self.regime
        self._fresh_s = now_s
        self._learn(sample)
        verdict = self._verdict(sample)
        if verdict == self.regime:
            self._pending, self._count = None, 0
            return self.regime
        self._count = self._count + 1 if verdict == self._pending else 1
        self._pending = verdict
        stayed = now_s - self._since_s >= self.settings.dwell_s
        if self._count >= self.settings.in_a_row and stayed:
            # One step at a time: a jump over the transition is taken in two.
            step = 1 if verdict > self.regime else -1
            self._enter(Regime(self.regime + step), now_s)
        return self.regime

    def _learn(self, sample: Sample) -> None:
        weight = self.settings.smoothing
        p99 = sample.ttft_p99_s
        self.smoothed_s = (
            p99 if self.smoothed_s is None else self.smoothed_s + weight * (p99 - self.smoothed_s)
        )
        # The baseline follows low load only: down at once, up slowly and only while below.
        if self.baseline_s is None or self.smoothed_s < self.baseline_s:
            self.baseline_s = self.smoothed_s
        elif self.regime is Regime.BELOW and sample.utilisation < 0.5:
            self.baseline_s += 0.01 * (self.smoothed_s - self.baseline_s)

    def _verdict(self, sample: Sample) -> Regime:
        if not self.baseline_s or self.smoothed_s is None:
            return Regime.BELOW
        ratio = self.smoothed_s / self.baseline_s
        found = Regime.BELOW
        for regime, threshold in zip(
            (Regime.TRANSITION, Regime.SATURATED), self.settings.enter, strict=True
        ):
            inside = self.regime >= regime
            if ratio >= threshold * (self.settings.leave_share if inside else 1.0):
                found = regime
        if sample.utilisation >= self.settings.saturated_utilisation:
            found = Regime.SATURATED
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
        raise ValueError(f"got shapes {loads.shape} and {latencies.shape}; expected one, 1-d")
    if loads.size < 3:
        return None
    if not (np.diff(loads) > 0).all():
        raise ValueError("loads must rise")
    slopes = np.diff(latencies) / np.diff(loads)
    bends = np.diff(slopes) / (0.5 * (loads[2:] - loads[:-2]))
    best = int(np.argmax(bends))
    return float(loads[best + 1]) if bends[best] > 1e-9 * np.abs(latencies).max() else None
