"""Do no harm: a change stays only while what is observed stays within what was predicted.

Predicted is what would have come without the change: the queue carried on at the load that really
came (`wardrop.control.forecast`), so that neither a queue that grows by itself nor a surge counts
as harm; where load and queue are not known, as on a metrics page, that all stays as it was, judged
only at a like load. No figure of `COSTS` may be worse than that by more than `tolerance`, nor may
fewer answers end (`answers_per_s`): refusing requests helps all the others. A difference counts
when it is larger than its own noise: samples are taken so far apart that they share no request, and
the scatter of both sides around the prediction, with what the prediction may drift by, gives the
standard error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from wardrop.control.forecast import Forecast, Seen, Series
from wardrop.control.sample import Sample

COSTS = ("ttft_mean_s", "ttft_p99_s", "itl_mean_s", "e2e_mean_s")
"""Figures that may not get worse."""

_HISTORY_S = 120.0
"""Waiting prefill is remembered so long: a first token tells of the queue that it met."""


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
        load_band: share of the load seen before by which it may differ; outside, the trial starts
            over, and ends by roll-back after `max_trial_s`.
        surge_band: the same with a forecast, of the highest load seen; less load is never outside.
        max_trial_s: longest trial.
        forecasts: judge against the forecast where there can be one; else against what was before.
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
    """Watches one change at a time."""

    def __init__(self, settings: GuardSettings | None = None) -> None:
        self.settings = settings or GuardSettings()
        self._before: list[Seen] = []
        self._after: list[Seen] = []
        self._queue = Series()
        self._ttft = Series()
        self._forecast: Forecast | None = None
        self._changed_s: float | None = None
        self._taken_s: float | None = None
        self.reason = ""
        """Why the last trial ended as it did."""
        self.found: dict[str, float] = {}
        """The evidence of the last trial."""

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
        can = self.settings.forecasts and Forecast.possible(self._before)
        self._forecast = Forecast(self._before, self._queue, self._ttft, now_s) if can else None

    def forget(self) -> None:
        """Something else changed: what was seen so far says nothing any more."""
        self._changed_s = None
        self._forecast = None
        self._before.clear()
        self._after.clear()

    def evidence(self) -> dict[str, float]:
        """Means before, after and predicted, for the audit."""
        out: dict[str, float] = {}
        for name in (*COSTS, "arrivals_per_s", "answers_per_s"):
            out[f"{name}_before"] = _mean(_figures(self._before, name))
            if self._after:
                out[f"{name}_after"] = _mean(_figures(self._after, name))
            if self._after and name in COSTS:
                out[f"{name}_predicted"] = _mean(self._predicted(name))
        return out

    def step(self, now_s: float, sample: Sample) -> Verdict:
        """Takes one fresh sample in; one that shares requests with the last is not judged."""
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
            self._before.append(Seen(now_s, sample))
            del self._before[: -self.settings.samples]
            return Verdict.KEEP
        # A sample's whole stretch must lie behind the change and its settling.
        if now_s - self._changed_s < self.settings.settle_s + sample.span_s:
            return Verdict.WAIT
        self._taken_s = now_s
        if now_s - self._changed_s > self.settings.max_trial_s:
            return self._end(Verdict.ROLL_BACK, "no fair comparison within the trial's time")
        if not self._is_like(sample):
            self._after.clear()
            return Verdict.WAIT
        self._after.append(Seen(now_s, sample))
        whole = len(self._after) >= self.settings.samples
        # Half a trial is enough to see harm, the whole one to trust the absence of it.
        if 2 * len(self._after) >= self.settings.samples:
            errors = self.settings.late_errors if whole else self.settings.early_errors
            for harm in (*(self._harm(name, errors) for name in COSTS), self._lost(errors)):
                if harm:
                    return self._end(Verdict.ROLL_BACK, harm)
        return self._end(Verdict.KEEP, "within the band") if whole else Verdict.WAIT

    def _is_like(self, sample: Sample) -> bool:
        """The load is one that the time before can speak for."""
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
        """Answers that no longer end though as many requests arrive."""
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


def _figures(samples: list[Seen], name: str) -> list[float]:
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
