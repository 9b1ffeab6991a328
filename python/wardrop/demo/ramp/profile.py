"""The load of the ramp over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

PHASES = ("below", "up", "peak", "down", "after")
"""Names of the five parts of a profile, in order of time."""


@dataclass(frozen=True)
class Profile:
    """Load over time: low, a rise, the peak, a fall, low again, each for a fifth of the time.

    The profile stretches the clock of a workload that is made at the lowest rate. Virtual time is
    the clock of that workload; it is the integral of the multiple over real time.

    Attributes:
        seconds: Length of the whole profile.
        low_per_s: Requests/s at both ends.
        peak: Multiple of `low_per_s` in the middle.
    """

    seconds: float = 60.0
    low_per_s: float = 6.0
    peak: float = 5.0

    def times(self) -> tuple[Floats, Floats]:
        """Corners of the profile: times in seconds, and multiples of the lowest rate."""
        times = np.linspace(0.0, self.seconds, 6)
        return times, np.array([1.0, 1.0, self.peak, self.peak, 1.0, 1.0])

    def virtual_s(self, real_s: Floats) -> Floats:
        """Virtual time that has passed at a real time."""
        fine = np.linspace(0.0, self.seconds, 2001)
        rate = np.interp(fine, *self.times())
        passed = np.concatenate([[0.0], np.cumsum(0.5 * (rate[1:] + rate[:-1]) * np.diff(fine))])
        return np.interp(real_s, fine, passed)

    def real_s(self, virtual_s: Floats) -> Floats:
        """Real time at which a virtual time has passed: the inverse of `virtual_s`."""
        fine = np.linspace(0.0, self.seconds, 2001)
        return np.interp(virtual_s, self.virtual_s(fine), fine)

    def phase(self, real_s: Floats) -> NDArray[np.intp]:
        """Index into `PHASES` for each real time."""
        return np.clip((real_s / self.seconds * 5).astype(np.intp), 0, 4)
