"""From the columns of the load driver to the figures of one arm of the ramp. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wardrop.demo.arms import Arm
from wardrop.demo.drive import Driven
from wardrop.demo.ramp.profile import PHASES, Floats, Profile
from wardrop.demo.ramp.series import Series

TTFT_SLO_S = 1.0
ITL_SLO_S = 0.05
GOODPUT = f"time to first token ≤ {TTFT_SLO_S:g} s and mean gap ≤ {1e3 * ITL_SLO_S:g} ms"
"""Limits of a good answer, in words."""


@dataclass(frozen=True)
class PhaseFigures:
    """Figures of one arm in one phase, or in all phases together.

    Attributes:
        requests: Answered requests.
        ttft_mean_ms: Mean time to first token, in milliseconds.
        ttft_p50_ms: Median time to first token, in milliseconds.
        ttft_p99_ms: 99th percentile of the time to first token, in milliseconds.
        goodput: Share of requests within `GOODPUT`, 0 to 1.
    """

    requests: int
    ttft_mean_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    goodput: float


@dataclass(frozen=True)
class RampResult:
    """One arm after its run.

    Attributes:
        label: Name for people.
        key: Name in files.
        whole: Figures over all requests.
        phases: Figures by the phase in which a request was sent.
        errors: Requests without a complete answer.
        driver_late_ms: Lateness of the load driver at p99, in milliseconds.
        sent_s: Times at which the answered requests were sent, ascending.
        ttft_s: Times to first token in the order of `sent_s`.
        series: Figures of the gateway; None for an arm without a gateway.
    """

    label: str
    key: str
    whole: PhaseFigures
    phases: dict[str, PhaseFigures]
    errors: int
    driver_late_ms: float
    sent_s: list[float]
    ttft_s: list[float]
    series: Series | None


def ramp_result(arm: Arm, driven: Driven, profile: Profile, series: Series | None) -> RampResult:
    """The figures of one arm.

    Args:
        arm: The arm.
        driven: The columns of the load driver.
        profile: The load over time.
        series: Figures of the gateway, or None.
    """
    columns = driven.columns
    ok = np.array([outcome == "ok" for outcome in columns["outcome"]])

    def column(name: str) -> Floats:
        return np.array(columns[name], dtype=np.float64)[ok]

    sent, first, end = column("sent_s"), column("first_token_s"), column("end_s")
    tokens = np.nan_to_num(column("completion_tokens"), nan=1.0)
    ttft = first - sent
    gaps = np.where(tokens > 1, (end - first) / np.maximum(1.0, tokens - 1), 0.0)
    good = (ttft <= TTFT_SLO_S) & (gaps <= ITL_SLO_S)
    phase = profile.phase(sent)
    order = np.argsort(sent)
    failed = int(sum(o not in ("ok", "unsent") for o in columns["outcome"]))
    return RampResult(
        arm.label,
        arm.key,
        _figures(ttft, good, failed),
        {name: _figures(ttft[phase == at], good[phase == at], 0) for at, name in enumerate(PHASES)},
        failed,
        1e3 * float(columns["lateness_p99_s"] or 0.0),
        sent[order].round(4).tolist(),
        ttft[order].round(5).tolist(),
        series,
    )


def _figures(ttft: Floats, good: NDArray[np.bool_], failed: int) -> PhaseFigures:
    if not ttft.size:
        return PhaseFigures(0, *[float("nan")] * 4)
    p50, p99 = (1e3 * float(np.percentile(ttft, q)) for q in (50, 99))
    goodput = float(good.sum() / (good.size + failed))
    return PhaseFigures(int(ttft.size), 1e3 * float(ttft.mean()), p50, p99, goodput)
