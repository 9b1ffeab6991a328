"""Do no harm: a change stays only while what is observed stays within what was predicted.

The prediction is that nothing gets worse: no figure of `COSTS` by more than `tolerance` over its
mean of before, at the same load. A difference counts when it is larger than its own noise: samples
are taken so far apart that they share no request, and their scatter gives the standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from wardrop.control.sample import Sample

COSTS = ("ttft_mean_s", "ttft_p99_s", "itl_mean_s", "e2e_mean_s")
"""Figures that may not get worse."""


class Verdict(Enum):
    """What became of a change."""

    WAIT = "wait"
    KEEP = "keep"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True)
class GuardSettings:
    """How a change is judged.

    Attributes:
        samples: samples before and after that are compared.
        settle_s: time after a change that is not looked at.
        tolerance: share by which any figure may get worse.
        early_errors: standard errors of the difference that show harm at half of the samples.
        late_errors: the same at the end, where the absence of harm is to be trusted.
        load_band: before and after are compared only within this share of the load; outside, the
            trial starts over, and ends by roll-back after `max_trial_s`.
        max_trial_s: longest trial.
    """

    samples: int = 10
    settle_s: float = 2.0
    tolerance: float = 0.10
    early_errors: float = 2.0
    late_errors: float = 1.0
    load_band: float = 0.25
    max_trial_s: float = 120.0


class Guard:
    """Watches one change at a time."""

    def __init__(self, settings: GuardSettings | None = None) -> None:
        self.settings = settings or GuardSettings()
        self._before: list[Sample] = []
        self._after: list[Sample] = []
        self._changed_s: float | None = None
        self._taken_s: float | None = None
        self.reason = ""

    @property
    def busy(self) -> bool:
        """A change is on trial."""
        return self._changed_s is not None

    @property
    def ready(self) -> bool:
        """There is enough of a record to judge a change against."""
        return not self.busy and len(self._before) >= self.settings.samples

    def changed(self, now_s: float) -> None:
        """A change was made: its trial begins."""
        self._changed_s = now_s
        self._after.clear()

    def forget(self) -> None:
        """Something else changed: what was seen so far says nothing any more."""
        self._changed_s = None
        self._before.clear()
        self._after.clear()

    def evidence(self) -> dict[str, float]:
        """Means before and after, for the audit."""
        out: dict[str, float] = {}
        for name in (*COSTS, "arrivals_per_s"):
            out[f"{name}_before"] = _mean(self._before, name)
            if self._after:
                out[f"{name}_after"] = _mean(self._after, name)
        return out

    def step(self, now_s: float, sample: Sample) -> Verdict:
        """Takes one fresh sample in; one that shares requests with the last is passed over."""
        if self._taken_s is not None and now_s - self._taken_s < sample.span_s:
            return Verdict.KEEP if self._changed_s is None else Verdict.WAIT
        if self._changed_s is None:
            self._taken_s = now_s
            self._before.append(sample)
            del self._before[: -self.settings.samples]
            return Verdict.KEEP
        # A sample's whole stretch must lie behind the change and its settling.
        if now_s - self._changed_s < self.settings.settle_s + sample.span_s:
            return Verdict.WAIT
        self._taken_s = now_s
        if now_s - self._changed_s > self.settings.max_trial_s:
            return self._end(Verdict.ROLL_BACK, "no fair comparison within the trial's time")
        before = _mean(self._before, "arrivals_per_s")
        if abs(sample.arrivals_per_s - before) > self.settings.load_band * max(before, 1e-9):
            self._after.clear()
            return Verdict.WAIT
        self._after.append(sample)
        whole = len(self._after) >= self.settings.samples
        # Half a trial is enough to see harm, the whole one to trust the absence of it.
        if 2 * len(self._after) >= self.settings.samples:
            errors = self.settings.late_errors if whole else self.settings.early_errors
            for name in COSTS:
                harm = self._harm(name, errors)
                if harm:
                    return self._end(Verdict.ROLL_BACK, harm)
        return self._end(Verdict.KEEP, "within the band") if whole else Verdict.WAIT

    def _harm(self, name: str, errors: float) -> str:
        was, now = _mean(self._before, name), _mean(self._after, name)
        noise = math.hypot(_error(self._before, name), _error(self._after, name))
        if now - was > max(self.settings.tolerance * was, errors * noise):
            return f"{name} went from {was:.4g} to {now:.4g} (±{noise:.2g})"
        return ""

    def _end(self, verdict: Verdict, reason: str) -> Verdict:
        self.reason = reason
        self._changed_s = None
        if verdict is Verdict.KEEP:
            self._before = list(self._after)
        return verdict


def _mean(samples: list[Sample], name: str) -> float:
    return sum(getattr(s, name) for s in samples) / len(samples) if samples else 0.0


def _error(samples: list[Sample], name: str) -> float:
    """Standard error of the mean; 0 under two samples."""
    count = len(samples)
    if count < 2:
        return 0.0
    mean = _mean(samples, name)
    return math.sqrt(sum((getattr(s, name) - mean) ** 2 for s in samples) / (count - 1) / count)
