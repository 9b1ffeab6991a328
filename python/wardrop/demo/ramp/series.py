"""Figures that a gateway reports of itself while an arm of the ramp runs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.request import urlopen

_READ_INTERVAL_S = 0.5
_READ_TIMEOUT_S = 2.0

_WATCHED = {
    "poa": "wardrop_decision_loss",
    "poa_low": "wardrop_decision_loss_low",
    "poa_high": "wardrop_decision_loss_high",
    "waiting": "wardrop_queue_requests",
    "regime": "wardrop_control_regime",
    "knee_share": "wardrop_control_knee_ratio",
}
_SETTING = re.compile(r'wardrop_control_setting\{.*setting="(\w+)".*\} (\S+)')


@dataclass
class Series:
    """Figures of a gateway's metrics page while an arm ran.

    Attributes:
        time_s: Times of the readings, in seconds after the start.
        values: Values by name, one per reading; NaN where the page had none.
    """

    time_s: list[float] = field(default_factory=list[float])
    values: dict[str, list[float]] = field(default_factory=dict[str, list[float]])


def series_reader(url: str, series: Series) -> Callable[[dict[str, Any]], None]:
    """A callback that adds the metrics page of a gateway to a series, at most twice a second.

    Args:
        url: Base address of the gateway.
        series: The series to fill.
    """
    started_s, last_s = time.monotonic(), 0.0

    def watch(_progress: dict[str, Any]) -> None:
        nonlocal last_s
        now_s = time.monotonic() - started_s
        if now_s - last_s < _READ_INTERVAL_S:
            return
        last_s = now_s
        try:
            with urlopen(f"{url}/metrics", timeout=_READ_TIMEOUT_S) as answer:
                page = answer.read().decode()
        except OSError:
            return
        found = {name: _total(page, metric) for name, metric in _WATCHED.items()}
        found |= {f"setting_{name}": float(value) for name, value in _SETTING.findall(page)}
        for name, value in found.items():
            values = series.values.setdefault(name, [float("nan")] * len(series.time_s))
            values.append(value)
        series.time_s.append(now_s)
        for values in series.values.values():
            values += [float("nan")] * (len(series.time_s) - len(values))

    return watch


def _total(page: str, metric: str) -> float:
    values = [
        float(line.rpartition(" ")[2])
        for line in page.splitlines()
        if line.startswith(metric + "{")
    ]
    return sum(values) if values else float("nan")
