"""The forecast: the course of the figures without the change, at the load that really arrives.

A queue that grows by itself is no harm of a change, and a queue that drains hides harm. So the
forecast continues the waiting prefill B (seconds per worker) from the moment of the change. It uses
the arrivals since then, and the work per request from before. A change may spoil the caches, and
the extra work must not count as load:

    dB/dt = arrivals · work − g · B/(B + h)

h is the prefill of one request: a worker runs at full speed with a queue and slower without (the
fluid form of the M/M/1 queue). g is the work that a worker clears per second, fitted to the time
before the change. So a stable queue stays stable and a growing queue keeps growing. The fit also
absorbs the error of the curves. A first token is due when the queue at the request's arrival is
cleared:

    ttft(t) = a + s · B(u),  u + ttft = t

a is the TTFT of a request that meets no other request, and s is fitted to the time before the
change.

The time between tokens stays at its last value before the change, with two exceptions. Where it was
rising, it may go on rising for as long as an answer takes, because an answer reflects its whole
life. Where more requests are served, it may grow with the square of their ratio: a step of the
larger batch is longer by at most this ratio, and so is the number of prefills between two steps.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from wardrop.control.sample import Sample

_STEP_S = 0.25
"""Longest step of the integration, in seconds."""
_PRIOR = 0.5
"""Weight of the prior g = 1, in samples: a fleet that never queued gives no evidence of g."""
_MAX_SLOPE = 4.0
"""Largest slope s of a tail over the mean queue."""


@dataclass
class Series:
    """A figure over time: points by rising time, linear in between, constant beyond both ends."""

    at_s: list[float] = field(default_factory=list[float])
    values: list[float] = field(default_factory=list[float])

    def add(self, at_s: float, value: float) -> None:
        """Append one point, later than all others."""
        self.at_s.append(at_s)
        self.values.append(value)

    def keep(self, from_s: float) -> None:
        """Drop the points before `from_s`, except the youngest of them."""
        cut = max(0, bisect.bisect_left(self.at_s, from_s) - 1)
        del self.at_s[:cut], self.values[:cut]

    def at(self, at_s: float) -> float:
        """The value at a time; 0 without any point."""
        if not self.at_s:
            return 0.0
        after = bisect.bisect_right(self.at_s, at_s)
        if after == 0:
            return self.values[0]
        if after == len(self.at_s):
            return self.values[-1]
        left, right = self.at_s[after - 1], self.at_s[after]
        share = (at_s - left) / (right - left)
        return self.values[after - 1] + share * (self.values[after] - self.values[after - 1])


@dataclass(frozen=True)
class TtftLine:
    """A time to first token as a linear function of the queue at the request's arrival.

    Attributes:
        alone_s: seconds with an empty queue.
        slope: seconds per second of queue.
    """

    alone_s: float
    slope: float

    @classmethod
    def fit(
        cls, name: str, alone_s: float, before: Sequence[TimedSample], queue: Series
    ) -> TtftLine:
        """Least squares through (0, `alone_s`), or through the smallest figure if that is less."""
        pairs = [(getattr(seen.sample, name), seen.middle_s) for seen in before]
        alone_s = min(alone_s, *(y for y, _ in pairs))
        met = [(y - alone_s, queue.at(at_s - y)) for y, at_s in pairs]
        squares = sum(b * b for _, b in met)
        slope = sum(y * b for y, b in met) / squares if squares > 0 else 1.0
        return cls(alone_s, min(max(slope, 0.0), _MAX_SLOPE))

    def due_s(self, at_s: float, queue: Series) -> float:
        """The TTFT of first tokens at `at_s`: that of the latest arrival due by then."""
        for met_s, waits in zip(reversed(queue.at_s), reversed(queue.values), strict=True):
            ttft_s = self.alone_s + self.slope * waits
            if met_s + ttft_s <= at_s:
                return ttft_s
        return self.alone_s + self.slope * queue.values[0] if queue.values else self.alone_s


@dataclass(frozen=True)
class TimedSample:
    """A sample and the time at which its stretch ends."""

    at_s: float
    sample: Sample

    @property
    def middle_s(self) -> float:
        """The middle of the stretch."""
        return self.at_s - 0.5 * self.sample.span_s


class Forecast:
    """Continues the queue from the moment of a change.

    Args:
        before: samples before the change, oldest first, at least three.
        queue: waiting prefill so far, over at least the same time.
        ttft: mean times to first token so far.
        now_s: time of the change.
    """

    def __init__(
        self, before: Sequence[TimedSample], queue: Series, ttft: Series, now_s: float
    ) -> None:
        self._before = before
        self._now_s = now_s
        self._start_s = now_s
        arrivals = sum(seen.sample.arrivals_per_s for seen in before)
        offered = sum(seen.sample.offered for seen in before)
        self._work_s = offered / arrivals if arrivals > 0 else 0.0
        self._offered = offered / len(before)
        self._alone_s = _mean([seen.sample.alone_s for seen in before])
        self._queue = Series(list(queue.at_s), list(queue.values))
        self._ttft = Series(list(ttft.at_s), list(ttft.values))
        self._waits_s = queue.values[-1]
        self.rate, self.rate_error = self._fit_rate()
        self._lines = {
            name: TtftLine.fit(name, factor * self._alone_s, before, queue)
            for name, factor in (("ttft_mean_s", 1.0), ("ttft_p99_s", 2.0))
        }
        self._itl_s, self._itl_rise = self._fit_itl()
        self._gaps = self._fit_gaps()
        self._scale: dict[str, float] = {}
        self.errors: dict[str, float] = {}
        for name in PREDICTED:
            values = [getattr(seen.sample, name) for seen in before]
            raw = [self._raw(name, seen, queue) for seen in before]
            # A figure that was stable must be predicted to stay as it was.
            share = _mean(values) / _mean(raw) if _mean(raw) > 0 else 1.0
            self._scale[name] = 1.0 if name == "itl_mean_s" else min(max(share, 0.5), 2.0)
            rest = [v - self._scale[name] * r for v, r in zip(values, raw, strict=True)]
            self.errors[name] = _error(rest)

    @staticmethod
    def possible(before: Sequence[TimedSample]) -> bool:
        """Whether load and queue are known; samples of a metrics page have neither."""
        return len(before) > 2 and all(seen.sample.alone_s > 0 for seen in before)

    def advance(self, now_s: float, sample: Sample) -> None:
        """Continue the queue to `now_s` at the load of the sample."""
        load = sample.arrivals_per_s * self._work_s
        while now_s - self._now_s > 1e-9:
            step_s = min(_STEP_S, now_s - self._now_s)
            cleared = self.rate * self._busy(self._waits_s)
            self._waits_s = max(0.0, self._waits_s + step_s * (load - cleared))
            self._now_s += step_s
            self._queue.add(self._now_s, self._waits_s)

    def of(self, name: str, seen: TimedSample) -> float:
        """The prediction of a figure for a sample after the change."""
        return self._scale[name] * self._raw(name, seen, self._queue)

    def _raw(self, name: str, seen: TimedSample, queue: Series) -> float:
        if name == "itl_mean_s":
            return self._itl_at(seen, queue)
        if name == "e2e_mean_s":
            is_past = seen.at_s <= self._start_s
            itl_s = seen.sample.itl_mean_s if is_past else self._itl_at(seen, queue)
            rest_s = self._gaps * itl_s
            at_s = seen.middle_s - rest_s
            known = at_s <= self._start_s
            ttft = self._ttft.at(at_s) if known else self._lines["ttft_mean_s"].due_s(at_s, queue)
            return rest_s + ttft
        return self._lines[name].due_s(seen.middle_s, queue)

    def _itl_at(self, seen: TimedSample, queue: Series) -> float:
        """The predicted time between tokens; the module gives the formula."""
        if seen.at_s <= self._start_s:
            return self._itl_s
        life_s = self._gaps * self._itl_s
        risen_s = self._itl_rise * min(seen.middle_s - self._start_s, life_s)
        served = self.rate * self._busy(queue.at(seen.middle_s - 0.5 * life_s))
        more = max(1.0, served / self._offered) if self._offered else 1.0
        return (self._itl_s + max(0.0, risen_s)) * more * more

    def _fit_itl(self) -> tuple[float, float]:
        """The time between tokens just before the change, and its rise in seconds per second."""
        known = [seen for seen in self._before if seen.sample.itl_mean_s > 0]
        if len(known) < 4:
            return _mean([seen.sample.itl_mean_s for seen in known]), 0.0
        values = [seen.sample.itl_mean_s for seen in known]
        half = len(values) // 2
        first, last = values[:half], values[-half:]
        risen_s = _mean(last) - _mean(first)
        if risen_s <= 2 * math.hypot(_error(first), _error(last)):
            return max(_mean(values), _mean(values[-max(1, len(values) // 3) :])), 0.0
        span_s = _mean([s.at_s for s in known[-half:]]) - _mean([s.at_s for s in known[:half]])
        return max(values[-1], _mean(last)), risen_s / span_s

    def _fit_gaps(self) -> float:
        """Mean number of gaps between the tokens of an answer, from E2E, TTFT and ITL."""
        ends = [s for s in self._before if s.sample.e2e_mean_s > 0 and s.sample.itl_mean_s > 0]
        gaps = 0.0
        for _ in range(4):
            gaps = _mean(
                [
                    (s.sample.e2e_mean_s - self._ttft.at(s.middle_s - gaps * s.sample.itl_mean_s))
                    / s.sample.itl_mean_s
                    for s in ends
                ]
            )
            gaps = max(0.0, gaps)
        return gaps

    def drift_s(self, name: str, at_s: float) -> float:
        """Error of the prediction at `at_s`, in seconds, that follows from the error of g."""
        if name == "itl_mean_s":
            return 0.0
        line = self._lines["ttft_mean_s" if name == "e2e_mean_s" else name]
        grown_s = max(0.0, at_s - self._start_s) * self.rate_error * self._busy(self._waits_s)
        return line.slope * min(grown_s, self._waits_s)

    def _busy(self, waits_s: float) -> float:
        return waits_s / (waits_s + self._alone_s) if waits_s > 0 else 0.0

    def _fit_rate(self) -> tuple[float, float]:
        """The rate g and its standard error: cleared work over the share of time at full speed."""
        rows: list[tuple[float, float]] = []
        for was, seen in zip(self._before, self._before[1:], strict=False):
            span_s = seen.at_s - was.at_s
            grown = (seen.sample.backlog_s - was.sample.backlog_s) / span_s
            busy = self._busy(self._queue.at(was.at_s + 0.5 * span_s))
            rows.append((seen.sample.offered - grown, busy))
        busy = sum(share for _, share in rows)
        rate = (sum(cleared for cleared, _ in rows) + _PRIOR) / (busy + _PRIOR)
        rest = [cleared - rate * share for cleared, share in rows]
        scatter = math.sqrt(sum(r * r for r in rest) / max(1, len(rest) - 1) / len(rest))
        return rate, scatter * len(rows) / (busy + _PRIOR)


PREDICTED = ("ttft_mean_s", "ttft_p99_s", "itl_mean_s", "e2e_mean_s")
"""Figures that a forecast predicts."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean of two or more values."""
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
