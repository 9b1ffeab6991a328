"""Percentiles of the latencies in a sliding window, from counts that only grow.

The window is a difference between two counts, so no latency is kept. Adding and asking cost
O(bins), at most 192. A percentile is the middle of a bin, within 6.25 % of the latency.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import msgspec

from wardrop.service.live.observation import BinCount


class Percentiles(msgspec.Struct):
    """Percentiles in seconds, and the number of latencies behind them."""

    p50_s: float
    p95_s: float
    p99_s: float
    count: int


class PercentileWindow:
    """The latencies of the last `span_s` seconds.

    Args:
        span_s: Length of the window in seconds.
    """

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._past: deque[tuple[float, dict[float, int]]] = deque()

    def take(self, now_s: float, counts: Sequence[BinCount]) -> Percentiles | None:
        """The percentiles at `now_s`; None without a latency in the window.

        Args:
            now_s: Seconds of a monotonic clock.
            counts: Counts since the start. Smaller counts than before begin a new window.
        """
        present = dict(counts)
        if self._past and any(present.get(b, 0) < n for b, n in self._past[-1][1].items()):
            self._past.clear()
            self._past.append((now_s, {}))
        self._past.append((now_s, present))
        while len(self._past) > 2 and self._past[1][0] <= now_s - self._span_s:
            self._past.popleft()
        before = self._past[0][1]
        recent = [(middle_s, n - before.get(middle_s, 0)) for middle_s, n in counts]
        total = sum(n for _, n in recent)
        if total == 0:
            return None
        return Percentiles(
            _at(recent, 0.50 * total), _at(recent, 0.95 * total), _at(recent, 0.99 * total), total
        )


def _at(recent: Sequence[BinCount], rank: float) -> float:
    """The middle of the first bin up to which there are `rank` latencies."""
    reached = 0
    for middle_s, count in recent:
        reached += count
        if reached >= rank:
            return middle_s
    return recent[-1][0]
