"""The forecast without a change: a queue that stays, grows, drains or meets a surge."""

from dataclasses import replace

import numpy as np
import pytest

from wardrop.control import Guard, GuardSettings, Sample, Verdict
from wardrop.control.forecast import Forecast, Series, TimedSample

ALONE_S = 0.1


def fluid(load_of, seconds: float, start_s: float = 0.0, speed: float = 1.0):
    """Samples every 2 s of a first-come queue at `speed` under load_of(now)."""
    queue, seen = Series(), []
    waits_s, now_s = start_s, 0.0
    while now_s < seconds:
        load = load_of(now_s)
        busy = waits_s / (waits_s + ALONE_S) if waits_s else 0.0
        waits_s = max(0.0, waits_s + 0.25 * (load - speed * busy))
        now_s += 0.25
        queue.add(now_s, waits_s)
        if now_s % 2 == 0:
            ttft_s = ALONE_S
            for met_s, met in zip(reversed(queue.at_s), reversed(queue.values), strict=True):
                if met_s + ALONE_S + met <= now_s - 1:
                    ttft_s = ALONE_S + met
                    break
            sample = Sample(
                requests=20,
                ttft_mean_s=ttft_s,
                ttft_p99_s=2 * ALONE_S + (ttft_s - ALONE_S),
                itl_mean_s=0.01,
                e2e_mean_s=ttft_s + 0.5,
                utilisation=load,
                arrivals_per_s=10 * load,
                backlog_s=waits_s,
                alone_s=ALONE_S,
                span_s=2.0,
                answers_per_s=10 * min(load, 1.0),
                offered=load,
            )
            seen.append(TimedSample(now_s, sample))
    return seen, queue


CASES = {
    "stays": (lambda now_s: 0.7, 1.0),
    "grows": (lambda now_s: 1.3, 1.0),
    "grows while the curves are 20 % off": (lambda now_s: 1.5, 1.2),
    "drains": (lambda now_s: 1.4 if now_s < 32 else 0.3, 1.0),
    "meets a surge": (lambda now_s: 0.6 if now_s < 32 else 1.1, 1.0),
}


@pytest.mark.parametrize("case", CASES)
def test_forecast_follows_the_course_without_a_change(case) -> None:
    load_of, speed = CASES[case]
    seen, queue = fluid(load_of, 60.0, speed=speed)
    before = [s for s in seen if 10 < s.at_s <= 30]
    known = sum(at <= 30 for at in queue.at_s)
    ttft = Series([s.middle_s for s in before], [s.sample.ttft_mean_s for s in before])
    forecast = Forecast(before, Series(queue.at_s[:known], queue.values[:known]), ttft, 30.0)
    after = [s for s in seen if s.at_s > 34]
    for now_s in np.arange(30.25, 60.25, 0.25):
        latest = next(s for s in seen if s.at_s >= now_s - 1e-9)
        forecast.advance(float(now_s), latest.sample)
    for name in ("ttft_mean_s", "ttft_p99_s", "e2e_mean_s"):
        expected = np.mean([forecast.of(name, s) for s in after])
        came = np.mean([getattr(s.sample, name) for s in after])
        if name == "e2e_mean_s" and case == "meets a surge":
            # Here a larger batch costs nothing; the forecast allows for the worst.
            assert 0.95 * came < expected < 1.3 * came
        else:
            assert expected == pytest.approx(came, rel=0.15, abs=0.05), name


@pytest.mark.parametrize("harm", [1.0, 1.3])
def test_guard_tells_growth_from_harm(harm) -> None:
    """The same growing queue; with harm all times are 1.3 times as long from the change on."""
    seen, queue = fluid(lambda now_s: 1.2, 60.0)
    verdicts = {}
    for forecasts in (True, False):
        guard = Guard(GuardSettings(forecasts=forecasts))
        rows = {s.at_s: s.sample for s in seen}
        latest, end = seen[0].sample, Verdict.WAIT
        for at_s, waits_s in zip(queue.at_s, queue.values, strict=True):
            latest = rows.get(at_s, latest)
            worse = harm if at_s > 32 else 1.0
            sample = replace(latest, backlog_s=waits_s, ttft_mean_s=worse * latest.ttft_mean_s)
            if at_s == 30.0:
                guard.changed(30.0)
            if at_s < 2:
                continue
            found = guard.step(at_s, sample)
            if at_s > 30 and end is Verdict.WAIT:
                end = found
        verdicts[forecasts] = end
    assert verdicts[True] is (Verdict.KEEP if harm == 1.0 else Verdict.ROLL_BACK)
    assert verdicts[False] is Verdict.ROLL_BACK, "before and after cannot distinguish them"


def test_series_is_bounded_and_has_straight_lines_between() -> None:
    series = Series()
    assert series.at(3.0) == 0.0
    for i in range(10):
        series.add(float(i), 2.0 * i)
    assert (series.at(-1.0), series.at(2.5), series.at(99.0)) == (0.0, 5.0, 18.0)
    series.keep(6.5)
    assert series.at_s[0] == 6.0
    assert series.at(6.5) == 13.0
