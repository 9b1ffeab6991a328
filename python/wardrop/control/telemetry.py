"""Samples from the counters of a gateway, or from a metrics page as a fallback.

`Telemetry.take` takes one `Gateway.sample()` and returns the sample over the last `span_s`; none of
it runs per request. `PageTelemetry` makes the same samples from the differences between two reads
of a Prometheus text page. It serves while the gateway's own outcomes are stale.
"""

from __future__ import annotations

import math
import re
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

from wardrop.control.regime import knee_utilisation
from wardrop.control.sample import Sample

_WORK_S = 10.0
"""Time constant, in seconds, of the mean work of a request."""
_LOAD_S = 1.0
"""Stretch of the load in seconds: shorter than that of outcomes, so that a surge shows soon."""
_HORIZONS_S = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
"""Stretches over which load is bounded: a large surge is certain early, a small surge later."""
_ERRORS = 2.5
"""Standard errors of a count of arrivals between its bounds and itself."""


@dataclass
class _Slice:
    """The outcomes of one poll."""

    end_s: float
    span_s: float
    arrivals: int
    ttft_s: list[float]
    itl: tuple[float, int]
    e2e: tuple[float, int]
    refused: int
    backlog_s: float


@dataclass
class Telemetry:
    """A sliding window over polls.

    Attributes:
        span_s: length of the window in seconds.
    """

    span_s: float = 2.0
    _slices: deque[_Slice] = field(default_factory=deque[_Slice])
    _last: dict[tuple[str, str], tuple[int, float, float]] = field(
        default_factory=dict[tuple[str, str], tuple[int, float, float]]
    )
    _work_s: float = 0.0
    _knee: tuple[float, float] = (0.0, 1.0)
    _last_s: float | None = None
    _outcome_s: float | None = None

    def take(self, polled: dict[str, Any]) -> Sample | None:
        """The sample with one more poll; None for the first poll, which has no difference."""
        now_s = float(polled["now_s"])
        pools = [p for p in cast(list[Any], polled["pools"]) if p["role"] != "decode"]
        outcomes: dict[str, Any] = polled["outcomes"]
        offered_s, booked = self._differences(pools)
        span_s = 0.0 if self._last_s is None else now_s - self._last_s
        self._last_s = now_s
        if span_s <= 0.0:
            return None
        workers = sum(p["routable"] for p in pools)
        if booked:
            share = min(1.0, span_s / _WORK_S) if self._work_s else 1.0
            step_s = max((p["step_s"] for p in pools), default=0.0)
            # A curve may be wrong for a moment, but no step exceeds the time between tokens.
            itl_s = _mean([s.itl for s in self._within(now_s, self.span_s)])
            step_s = min(step_s, itl_s) if itl_s else step_s
            self._work_s += share * (offered_s / booked + step_s - self._work_s)
        backlog_s = sum(p["waiting_prefill_s"] + max(p["backlog_s"], _engine_s(p)) for p in pools)
        self._slices.append(
            _Slice(
                now_s,
                span_s,
                int(outcomes["arrivals"]),
                [float(x) for x in outcomes["ttft_s"]],
                (float(outcomes["itl_sum_s"]), int(outcomes["itl_answers"])),
                (float(outcomes["e2e_sum_s"]), int(outcomes["e2e_answers"])),
                int(outcomes.get("refused", 0)),
                backlog_s / max(1, workers),
            )
        )
        longest_s = max(self.span_s, *_HORIZONS_S)
        while len(self._slices) > 1 and self._slices[0].end_s <= now_s - longest_s:
            self._slices.popleft()
        in_flight = sum(p["in_flight"] + p["waiting"] for p in pools)
        if outcomes["ttft_s"] or outcomes["e2e_answers"] or not in_flight:
            self._outcome_s = now_s
        return self._sample(now_s, pools, workers)

    def _differences(self, pools: list[dict[str, Any]]) -> tuple[float, int]:
        offered_s, booked = 0.0, 0
        for pool in pools:
            key = (str(pool["model"]), str(pool["role"]))
            was = self._last.get(key)
            now = (int(pool["booked"]), float(pool["booked_prefill_s"]), 0.0)
            self._last[key] = now
            if was is not None and now[0] >= was[0]:
                booked += now[0] - was[0]
                offered_s += max(0.0, now[1] - was[1])
        return offered_s, booked

    def _within(self, now_s: float, span_s: float) -> list[_Slice]:
        """The slices of the last `span_s`, at least the newest."""
        found = [s for s in self._slices if s.end_s > now_s - span_s + 1e-9]
        return found or list(self._slices)[-1:]

    def _sample(self, now_s: float, pools: list[dict[str, Any]], workers: int) -> Sample:
        slices = self._within(now_s, self.span_s)
        span_s = sum(s.span_s for s in slices)
        ttft_s = sorted(x for s in slices for x in s.ttft_s)
        backlog_s = slices[-1].backlog_s
        stale_s = 0.0 if self._outcome_s is None else now_s - self._outcome_s
        # Requests in flight without an outcome are no stale feed while the bookings show a wait.
        age_s = 0.0 if backlog_s > 0.0 else stale_s
        # Every arrival counts as mean work, whether it is booked or still waits.
        per_arrival = self._work_s / max(1, workers)
        knee = self._knee_at()
        utilisation, least, most = 0.0, 0.0, math.inf
        came, recent_s = 0, 1.0
        for horizon_s in _HORIZONS_S:
            recent = self._within(now_s, horizon_s)
            recent_s = sum(s.span_s for s in recent)
            came = sum(s.arrivals for s in recent)
            load = per_arrival / recent_s
            least = max(least, load * (came - _ERRORS * math.sqrt(came)))
            most = min(most, load * (came + _ERRORS * math.sqrt(came + 1)))
            if horizon_s == _LOAD_S:
                utilisation = load * came
        # With few arrivals no stretch is certain, so the longest one bounds the load. Otherwise a
        # few long prompts would look like overload for ever.
        most = min(most, per_arrival * came / recent_s)
        return Sample(
            requests=len(ttft_s),
            ttft_mean_s=sum(ttft_s) / len(ttft_s) if ttft_s else 0.0,
            ttft_p99_s=ttft_s[math.ceil(0.99 * len(ttft_s)) - 1] if ttft_s else 0.0,
            itl_mean_s=_mean([s.itl for s in slices]),
            e2e_mean_s=_mean([s.e2e for s in slices]),
            utilisation=utilisation,
            waiting=sum(p["waiting"] for p in pools),
            arrivals_per_s=sum(s.arrivals for s in slices) / span_s,
            age_s=age_s,
            backlog_s=backlog_s,
            knee_share=utilisation / knee,
            knee_least=least / knee,
            knee_most=most / knee,
            alone_s=self._work_s,
            span_s=self.span_s,
            answers_per_s=sum(s.e2e[1] for s in slices) / span_s,
            refused_per_s=sum(s.refused for s in slices) / span_s,
            offered=per_arrival * sum(s.arrivals for s in slices) / span_s,
        )

    def _knee_at(self) -> float:
        """Utilisation at the knee, computed again when the mean work has changed by 5 %."""
        known_s, knee = self._knee
        if self._work_s > 0.0 and abs(self._work_s - known_s) > 0.05 * known_s:
            knee = knee_utilisation(self._work_s)
            self._knee = (self._work_s, knee)
        return knee


def _engine_s(pool: dict[str, Any]) -> float:
    """Prefill seconds that wait inside engines, as the engines report; 0 if the report is old."""
    age_s = pool["engine_age_s"]
    return float(pool["engine_queued_s"]) if age_s is not None and age_s < 2.0 else 0.0


def _mean(sums: list[tuple[float, int]]) -> float:
    count = sum(n for _, n in sums)
    return sum(s for s, _ in sums) / count if count else 0.0


_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")
_LE = re.compile(r'le="([^"]+)"')
_NAMES = {
    "ttft": ("dynamo_frontend_time_to_first_token_seconds", "wardrop_time_to_first_token_seconds"),
    "itl": ("dynamo_frontend_inter_token_latency_seconds", "wardrop_inter_token_latency_seconds"),
    "e2e": ("dynamo_frontend_request_duration_seconds", ""),
}


@dataclass
class PageTelemetry:
    """Samples from two reads of a Prometheus text page of a Dynamo frontend or of a gateway.

    These samples are coarser than the gateway's own: p99 is the upper edge of a bucket, and backlog
    and knee are unknown.
    """

    _last: tuple[float, dict[str, dict[float, float]], dict[str, tuple[float, float]]] | None = None

    def take(self, now_s: float, page: str) -> Sample | None:
        """The sample since the last read; None for the first read, or if no request ended."""
        buckets, sums = _histograms(page)
        last, self._last = self._last, (now_s, buckets, sums)
        if last is None or now_s <= last[0]:
            return None
        span_s = now_s - last[0]

        def mean(kind: str) -> tuple[float, float]:
            total, count = sums.get(kind, (0.0, 0.0))
            was_total, was_count = last[2].get(kind, (0.0, 0.0))
            grown = count - was_count
            return ((total - was_total) / grown if grown > 0 else 0.0), max(0.0, grown)

        ttft_s, requests = mean("ttft")
        if requests <= 0:
            return None
        edges = buckets.get("ttft", {})
        was = last[1].get("ttft", {})
        grown = sorted((edge, count - was.get(edge, 0.0)) for edge, count in edges.items())
        p99_s = next((edge for edge, count in grown if count >= 0.99 * requests), ttft_s)
        if math.isinf(p99_s):
            p99_s = max((edge for edge, _ in grown if not math.isinf(edge)), default=ttft_s)
        return Sample(
            requests=int(requests),
            ttft_mean_s=ttft_s,
            ttft_p99_s=p99_s,
            itl_mean_s=mean("itl")[0],
            e2e_mean_s=mean("e2e")[0],
            utilisation=0.0,
            arrivals_per_s=requests / span_s,
            span_s=span_s,
        )


def _histograms(
    page: str,
) -> tuple[dict[str, dict[float, float]], dict[str, tuple[float, float]]]:
    """Per kind: cumulative buckets by upper edge, and (sum, count), over all labels."""
    buckets: dict[str, dict[float, float]] = {}
    sums: dict[str, list[float]] = {}
    known = {name: kind for kind, names in _NAMES.items() for name in names if name}
    for line in page.splitlines():
        match = _SAMPLE.fullmatch(line)
        if match is None:
            continue
        name, _, part = match[1].rpartition("_")
        kind = known.get(name)
        if kind is None:
            continue
        value = float(match[3])
        if part == "bucket" and (edge := _LE.search(match[2] or "")):
            at = math.inf if edge[1] == "+Inf" else float(edge[1])
            edges = buckets.setdefault(kind, {})
            edges[at] = edges.get(at, 0.0) + value
        elif part in ("sum", "count"):
            sums.setdefault(kind, [0.0, 0.0])[part == "count"] += value
    return buckets, {kind: (total, count) for kind, (total, count) in sums.items()}
