"""What would have come without the change: the queue carried on at the load that really came.

A queue that grows by itself is no harm of a change, and one that drains hides some. So the waiting
prefill B (seconds per worker) is carried on from the moment of the change with the arrivals seen
since and the work per request of before (a change may spoil the caches; that must not count as
load):

    dB/dt = arrivals · work − g · B/(B + h)

with h the prefill of one request: full speed with a queue, less without one (the fluid form of the
M/M/1 queue). g, the work that a worker clears per second, is fitted to the time before the change,
so that a stable queue stays what it was and a growing one goes on growing; it also takes up what
the curves are wrong by. A first token is then due when the queue that its request met is gone:

    ttft(t) = a + s · B(u),  u + ttft = t

with a the time of a request that meets nobody and s fitted to the time before. The time between
tokens stays as it was at the end of the time before; where it was rising, it may go on rising for
as long as an answer takes, since an answer tells of its whole life; and where more requests are
served it may grow by the square of that: so much longer at most is a step of the larger batch, and
so many more are the prefills between two steps. An answer ends its gaps after its first token.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from wardrop.control.sample import Sample

_STEP_S = 0.25
"""Longest step by which the queue is carried on."""
_PRIOR = 0.5
"""Samples that g = 1 counts for: a fleet that never queued says nothing of it."""
_MOST_SLOPE = 4.0
"""A tail may be so many times the mean queue."""


@dataclass
class Series:
    """A figure over time, rising in time, with straight lines between; flat at both ends."""

    at_s: list[float] = field(default_factory=list[float])
    values: list[float] = field(default_factory=list[float])

    def add(self, at_s: float, value: float) -> None:
        """One more point."""
        self.at_s.append(at_s)
        self.values.append(value)

    def keep(self, from_s: float) -> None:
        """Forget what is older, but for the youngest of it."""
        cut = max(0, bisect.bisect_left(self.at_s, from_s) - 1)
        del self.at_s[:cut], self.values[:cut]

    def at(self, at_s: float) -> float:
        """The value at a time; 0 without a point."""
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
class Line:
    """A time to first token over the queue that its request met.

    Attributes:
        alone_s: with an empty queue.
        slope: seconds per second of queue.
    """

    alone_s: float
    slope: float

    @classmethod
    def fit(cls, name: str, alone_s: float, before: Sequence[Seen], queue: Series) -> Line:
        """Least squares through (0, `alone_s`), or the smallest figure seen where that is less."""
        pairs = [(getattr(seen.sample, name), seen.middle_s) for seen in before]
        alone_s = min(alone_s, *(y for y, _ in pairs))
        met = [(y - alone_s, queue.at(at_s - y)) for y, at_s in pairs]
        squares = sum(b * b for _, b in met)
        slope = sum(y * b for y, b in met) / squares if squares > 0 else 1.0
        return cls(alone_s, min(max(slope, 0.0), _MOST_SLOPE))

    def due_s(self, at_s: float, queue: Series) -> float:
        """The time to first token of those that come at `at_s`: of the last that can be there."""
        for met_s, waits in zip(reversed(queue.at_s), reversed(queue.values), strict=True):
            ttft_s = self.alone_s + self.slope * waits
            if met_s + ttft_s <= at_s:
                return ttft_s
        return self.alone_s + self.slope * queue.values[0] if queue.values else self.alone_s


@dataclass(frozen=True)
class Seen:
    """A sample and the middle of its stretch."""

    at_s: float
    sample: Sample

    @property
    def middle_s(self) -> float:
        """The middle of the stretch."""
        return self.at_s - 0.5 * self.sample.span_s


class Forecast:
    """Carries the queue on from the moment of a change.

    Args:
        before: samples before it, oldest first, at least three.
        queue: the waiting prefill seen so far, at least as long.
        ttft: the mean times to first token seen so far.
        now_s: the moment of the change.
    """

    def __init__(self, before: Sequence[Seen], queue: Series, ttft: Series, now_s: float) -> None:
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
            name: Line.fit(name, factor * self._alone_s, before, queue)
            for name, factor in (("ttft_mean_s", 1.0), ("ttft_p99_s", 2.0))
        }
        self._itl_s, self._itl_rise = self._fit_itl()
        self._gaps = self._fit_gaps()
        self._scale: dict[str, float] = {}
        self.errors: dict[str, float] = {}
        for name in PREDICTED:
            values = [getattr(seen.sample, name) for seen in before]
            raw = [self._raw(name, seen, queue) for seen in before]
            # What stayed as it was must be predicted to stay as it was.
            share = _mean(values) / _mean(raw) if _mean(raw) > 0 else 1.0
            self._scale[name] = 1.0 if name == "itl_mean_s" else min(max(share, 0.5), 2.0)
            rest = [v - self._scale[name] * r for v, r in zip(values, raw, strict=True)]
            self.errors[name] = _error(rest)

    @staticmethod
    def possible(before: Sequence[Seen]) -> bool:
        """Whether load and queue are known at all: a metrics page tells neither."""
        return len(before) > 2 and all(seen.sample.alone_s > 0 for seen in before)

    def advance(self, now_s: float, sample: Sample) -> None:
        """Carry the queue on to `now_s` at the load that came."""
        load = sample.arrivals_per_s * self._work_s
        while now_s - self._now_s > 1e-9:
            step_s = min(_STEP_S, now_s - self._now_s)
            cleared = self.rate * self._busy(self._waits_s)
            self._waits_s = max(0.0, self._waits_s + step_s * (load - cleared))
            self._now_s += step_s
            self._queue.add(self._now_s, self._waits_s)

    def of(self, name: str, seen: Seen) -> float:
        """What a figure of a stretch after the change would have been without it."""
        return self._scale[name] * self._raw(name, seen, self._queue)

    def _raw(self, name: str, seen: Seen, queue: Series) -> float:
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

    def _itl_at(self, seen: Seen, queue: Series) -> float:
        """The time between tokens: see the module."""
        if seen.at_s <= self._start_s:
            return self._itl_s
        life_s = self._gaps * self._itl_s
        risen_s = self._itl_rise * min(seen.middle_s - self._start_s, life_s)
        served = self.rate * self._busy(queue.at(seen.middle_s - 0.5 * life_s))
        more = max(1.0, served / self._offered) if self._offered else 1.0
        return (self._itl_s + max(0.0, risen_s)) * more * more

    def _fit_itl(self) -> tuple[float, float]:
        """The time between tokens at the end of the time before, and by how much it rises."""
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
        """Gaps between the tokens of an answer, by the time between its first and last one."""
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
        """How far off the prediction may be by now for want of a better `rate`."""
        if name == "itl_mean_s":
            return 0.0
        line = self._lines["ttft_mean_s" if name == "e2e_mean_s" else name]
        grown_s = max(0.0, at_s - self._start_s) * self.rate_error * self._busy(self._waits_s)
        return line.slope * min(grown_s, self._waits_s)

    def _busy(self, waits_s: float) -> float:
        return waits_s / (waits_s + self._alone_s) if waits_s > 0 else 0.0

    def _fit_rate(self) -> tuple[float, float]:
        """G and its standard error: what was cleared over how busy the workers were."""
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
"""Figures that a forecast knows."""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean."""
    mean = _mean(values)
    return math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
