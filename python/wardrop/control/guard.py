"""The guard: a change stays only while the observed figures stay within the predicted ones.

The prediction is the course without the change: `wardrop.control.forecast` continues the queue at
the load that really arrived. So neither a queue that grows by itself nor a surge counts as harm.
Where load and queue are unknown, as on a metrics page, the prediction is that all figures stay.
Only samples at a similar load are then judged.

No figure of `COSTS` may exceed its prediction by more than `tolerance`. Nor may fewer answers end
(`answers_per_s`), because refusing requests helps all others. A difference counts when it exceeds
its noise. Judged samples share no request; the scatter of both sides around the prediction, and the
drift of the prediction itself, give the standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from wardrop.control.forecast import Forecast, Series, TimedSample
from wardrop.control.sample import Sample

COSTS = ("ttft_mean_s", "ttft_p99_s", "itl_mean_s", "e2e_mean_s")
"""Figures of a sample that may not get worse."""

_HISTORY_S = 120.0
"""Seconds for which the queue is remembered: a first token depends on the queue at arrival."""


class Verdict(Enum):
    """The judgement of a change on trial."""

    WAIT = "wait"
    KEEP = "keep"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True)
class GuardSettings:
    """How a change is judged.

    Attributes:
        samples: number of samples before the change and after it.
        settle_s: seconds after a change that are not judged.
        tolerance: share by which any figure may get worse.
        early_errors: standard errors by which a difference shows harm after half of the samples.
        late_errors: standard errors by which a difference shows harm after all samples.
        load_band: without a forecast, the share by which the load may differ from the mean load
            before the change. A sample outside starts the trial over.
        surge_band: with a forecast, the share by which the load may exceed the highest load before
            the change. A sample outside starts the trial over.
        max_trial_s: longest trial in seconds; a longer one ends by roll-back.
        forecasts: whether a forecast is used where one is possible.
    """

    samples: int = 10
    settle_s: float = 2.0
    tolerance: float = 0.10
    early_errors: float = 2.0
    late_errors: float = 1.0
    load_band: float = 0.25
    surge_band: float = 1.0
    max_trial_s: float = 120.0
    forecasts: bool = True


class Guard:
    """Judges one change at a time."""

    def __init__(self, settings: GuardSettings | None = None) -> None:
        self.settings = settings or GuardSettings()
        self._before: list[TimedSample] = []
        self._after: list[TimedSample] = []
        self._queue = Series()
        self._ttft = Series()
        self._forecast: Forecast | None = None
        self._changed_s: float | None = None
        self._taken_s: float | None = None
        self.reason = ""
        """Why the last trial ended, in words."""
        self.found: dict[str, float] = {}
        """Figures of the last trial; see `evidence`."""

    @property
    def busy(self) -> bool:
        """Whether a change is on trial."""
        return self._changed_s is not None

    @property
    def ready(self) -> bool:
        """Whether there are enough samples to judge a change by."""
        return not self.busy and len(self._before) >= self.settings.samples

    def changed(self, now_s: float) -> None:
        """Begin the trial of a change that was just made."""
        self._changed_s = now_s
        self._after.clear()
        can = self.settings.forecasts and Forecast.possible(self._before)
        self._forecast = Forecast(self._before, self._queue, self._ttft, now_s) if can else None

    def forget(self) -> None:
        """Drop all samples and the trial, because something else changed."""
        self._changed_s = None
        self._forecast = None
        self._before.clear()
        self._after.clear()

    def evidence(self) -> dict[str, float]:
        """Means before, after and predicted, by name of the figure, for the audit."""
        out: dict[str, float] = {}
        for name in (*COSTS, "arrivals_per_s", "answers_per_s"):
            out[f"{name}_before"] = _mean(_figures(self._before, name))
            if self._after:
                out[f"{name}_after"] = _mean(_figures(self._after, name))
            if self._after and name in COSTS:
                out[f"{name}_predicted"] = _mean(self._predicted(name))
        return out

    def step(self, now_s: float, sample: Sample) -> Verdict:
        """Take one fresh sample and judge the change on trial.

        A sample that shares requests with the previous judged one only feeds the forecast.
        """
        self._queue.add(now_s, sample.backlog_s)
        self._ttft.add(now_s - 0.5 * sample.span_s, sample.ttft_mean_s)
        self._queue.keep(now_s - _HISTORY_S)
        self._ttft.keep(now_s - _HISTORY_S)
        if self._forecast is not None:
            self._forecast.advance(now_s, sample)
        if self._taken_s is not None and now_s - self._taken_s < sample.span_s:
            return Verdict.KEEP if self._changed_s is None else Verdict.WAIT
        if self._changed_s is None:
            self._taken_s = now_s
            self._before.append(TimedSample(now_s, sample))
            del self._before[: -self.settings.samples]
            return Verdict.KEEP
        # The whole stretch of a sample must lie behind the change and its settling time.
        if now_s - self._changed_s < self.settings.settle_s + sample.span_s:
            return Verdict.WAIT
        self._taken_s = now_s
        if now_s - self._changed_s > self.settings.max_trial_s:
            return self._end(Verdict.ROLL_BACK, "no fair comparison within the longest trial")
        if not self._is_like(sample):
            self._after.clear()
            return Verdict.WAIT
        self._after.append(TimedSample(now_s, sample))
        whole = len(self._after) >= self.settings.samples
        # Half a trial is enough to see harm; only the whole trial shows its absence.
        if 2 * len(self._after) >= self.settings.samples:
            errors = self.settings.late_errors if whole else self.settings.early_errors
            for harm in (*(self._harm(name, errors) for name in COSTS), self._lost(errors)):
                if harm:
                    return self._end(Verdict.ROLL_BACK, harm)
        return self._end(Verdict.KEEP, "within the band") if whole else Verdict.WAIT

    def _is_like(self, sample: Sample) -> bool:
        """Whether the load is similar enough to the load before the change."""
        seen = _figures(self._before, "arrivals_per_s")
        if self._forecast is not None:
            return sample.arrivals_per_s <= (1.0 + self.settings.surge_band) * max(seen)
        mean = _mean(seen)
        return abs(sample.arrivals_per_s - mean) <= self.settings.load_band * max(mean, 1e-9)

    def _predicted(self, name: str) -> list[float]:
        if self._forecast is None:
            return [_mean(_figures(self._before, name))] * len(self._after)
        return [self._forecast.of(name, seen) for seen in self._after]

    def _harm(self, name: str, errors: float) -> str:
        predicted = self._predicted(name)
        was, expected = _mean(_figures(self._before, name)), _mean(predicted)
        pairs = zip(self._after, predicted, strict=True)
        rest = [getattr(seen.sample, name) - value for seen, value in pairs]
        if self._forecast is None:
            noise = math.hypot(_error(_figures(self._before, name)), _error(rest))
        else:
            drift_s = self._forecast.drift_s(name, self._after[len(self._after) // 2].at_s)
            noise = math.hypot(self._forecast.errors[name], _error(rest), drift_s)
        if _mean(rest) > max(self.settings.tolerance * expected, errors * noise):
            now = expected + _mean(rest)
            without = "" if self._forecast is None else f", {expected:.4g} expected without"
            return f"{name} went from {was:.4g} to {now:.4g} (±{noise:.2g}{without})"
        return ""

    def _lost(self, errors: float) -> str:
        """The harm of fewer answers at equal arrivals, in words; empty without harm."""
        before, after = (_figures(part, "answers_per_s") for part in (self._before, self._after))
        was, now = _mean(before), _mean(after)
        expected = min(was, _mean(_figures(self._after, "arrivals_per_s")))
        noise = math.hypot(_error(before), _error(after))
        if expected - now > max(self.settings.tolerance * expected, errors * noise):
            return f"answers_per_s went from {was:.4g} to {now:.4g} (±{noise:.2g})"
        return ""

    def _end(self, verdict: Verdict, reason: str) -> Verdict:
        self.reason = reason
        self.found = self.evidence()
        self._changed_s = None
        self._forecast = None
        if verdict is Verdict.KEEP:
            self._before = list(self._after)
        return verdict


def _figures(samples: list[TimedSample], name: str) -> list[float]:
    return [getattr(seen.sample, name) for seen in samples]


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _error(values: list[float]) -> float:
    """Standard error of the mean; 0 under two values."""
    count = len(values)
    if count < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (count - 1) / count)
