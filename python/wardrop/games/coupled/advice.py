"""When does the loop oscillate, and which planner settings prevent it?

Where it stands: the answer of the coupled games; `wardrop games coupled` prints it. A map of gain
against delay, each cell a run of the loop; the linear theory's critical gain beside it; and a
recommendation as plain JSON with its assumptions, checked by one more run before it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from wardrop.games.coupled.loop import Fleet, History, run_loop
from wardrop.games.coupled.planner import Planner, critical_gain
from wardrop.games.errors import GameError
from wardrop.slo import Slo
from wardrop.timing import builtin_timing


def example_fleet(step: float = 1.25) -> Fleet:
    """Twelve workers, six families with 6,000 shared tokens each, built-in timing."""
    weights = 1.0 / np.arange(1, 7)
    return Fleet(
        workers=12,
        rates=22.0 * weights / weights.sum(),
        prefix_tokens=np.full(6, 6_000.0),
        private_tokens=2_000.0,
        output_tokens=500.0,
        cache_tokens=30_000.0,
        timing=builtin_timing(),
        slo=Slo(0.5, 0.03),
        step=step,
    )


@dataclass(frozen=True)
class RestPoint:
    """Where the split would rest if a planner moved slowly enough.

    Attributes:
        prefill: the pool size with the smallest |error|.
        errors: the steady signal by prefill workers.
        slope: fall of the signal per prefill worker around the rest point, > 0.
    """

    prefill: int
    errors: dict[int, float]
    slope: float


def rest_point(fleet: Fleet, seconds: float = 900.0) -> RestPoint:
    """Hold each split fixed until it settles and read the signal: G − 1 runs, no planner.

    Raises:
        GameError: the signal does not fall with prefill workers around the rest point.
    """
    still = Planner(gain=0.0)
    errors = {
        p: float(np.mean(run_loop(fleet, still, p, seconds).error[-10:]))
        for p in range(1, fleet.workers)
    }
    prefill = min(errors, key=lambda p: abs(errors[p]))
    low, high = max(1, prefill - 1), min(fleet.workers - 1, prefill + 1)
    slope = (errors[low] - errors[high]) / max(high - low, 1)
    if slope <= 0:
        raise GameError(
            f"got a signal that rises with prefill workers around {prefill}; expected it to fall. "
            "Both pools may be starved: add workers or lower the rate"
        )
    return RestPoint(prefill, errors, slope)


@dataclass(frozen=True)
class StabilityMap:
    """Where the loop oscillates.

    Attributes:
        gains: rows.
        delays_s: columns.
        swing: (gains, delays) workers between the extremes of the last half.
        oscillates: (gains, delays) the pool still turned around there.
        critical: (delays,) the linear theory's gain at which it would start.
    """

    gains: tuple[float, ...]
    delays_s: tuple[float, ...]
    swing: tuple[tuple[int, ...], ...]
    oscillates: tuple[tuple[bool, ...], ...]
    critical: tuple[float, ...]


def stability_map(
    fleet: Fleet,
    gains: Sequence[float],
    delays_s: Sequence[float],
    rest: RestPoint | None = None,
    waits: bool = False,
) -> StabilityMap:
    """Run the loop for each gain and delay from two workers below its rest point."""
    rest = rest or rest_point(fleet)
    start = max(1, rest.prefill - 2)

    def run(gain: float, delay_s: float) -> History:
        return run_loop(fleet, Planner(gain=gain, delay_s=delay_s, waits=waits), start)

    table = [[run(gain, delay) for delay in delays_s] for gain in gains]
    dead = [Planner(delay_s=delay).dead_intervals for delay in delays_s]
    return StabilityMap(
        gains=tuple(gains),
        delays_s=tuple(delays_s),
        swing=tuple(tuple(history.swing for history in row) for row in table),
        oscillates=tuple(tuple(history.oscillates for history in row) for row in table),
        critical=tuple(critical_gain(rest.slope, m) for m in dead),
    )


@dataclass(frozen=True)
class Advice:
    """Settings for a planner. All fields are plain numbers, strings and lists: it exports as JSON.

    Attributes:
        prefill_workers: recommended size.
        decode_workers: the rest.
        interval_s: between decisions.
        max_step_workers: per decision.
        gain_workers_per_log_error: half the critical gain for this delay, at most 1/slope.
        dead_band_log_error: signals smaller than this should move nothing.
        wait_for_moves: hold decisions while a move is under way.
        delay_s: for which all this holds.
        critical_gain: where the linear loop starts to ring.
        verified_stable: a run with these settings came to rest.
        default_oscillates: a run with gain 1/slope and no waiting did not.
        assumptions: read them.
    """

    prefill_workers: int
    decode_workers: int
    interval_s: float
    max_step_workers: int
    gain_workers_per_log_error: float
    dead_band_log_error: float
    wait_for_moves: bool
    delay_s: float
    critical_gain: float
    verified_stable: bool
    default_oscillates: bool
    assumptions: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """A JSON-ready mapping."""
        return asdict(self)


_ASSUMPTIONS = (
    "fluid model: no single requests, no KV transfer, no tiers",
    "caches follow Che's approximation; a moved worker starts cold",
    "signal: ln(mean TTFT / limit) − ln(step time / limit), averaged over one interval",
    "critical gain from the linear loop x' = x − κ·x(late) around the rest point",
)


def advise(fleet: Fleet, delay_s: float, rest: RestPoint | None = None) -> Advice:
    """Split, gain and dead band for a planner with this delay, checked by running the loop.

    The gain is half the critical one; if the loop still does not rest, decisions wait for moves; if
    that does not rest either, the advice says so (`verified_stable` false).
    """
    rest = rest or rest_point(fleet)
    bare = Planner(gain=1.0 / rest.slope, delay_s=delay_s)
    limit = critical_gain(rest.slope, bare.dead_intervals)
    gain = min(0.5 * limit, 1.0 / rest.slope)
    start = max(1, rest.prefill - 2)
    plain = Planner(gain=gain, delay_s=delay_s)
    patient = Planner(gain=gain, delay_s=delay_s, waits=True)
    settles = not run_loop(fleet, plain, start).oscillates
    chosen = plain if settles else patient
    return Advice(
        prefill_workers=rest.prefill,
        decode_workers=fleet.workers - rest.prefill,
        interval_s=chosen.interval_s,
        max_step_workers=chosen.max_step,
        gain_workers_per_log_error=gain,
        dead_band_log_error=0.5 / gain,
        wait_for_moves=chosen.waits,
        delay_s=delay_s,
        critical_gain=limit,
        verified_stable=settles or not run_loop(fleet, patient, start).oscillates,
        default_oscillates=run_loop(fleet, bare, start).oscillates,
        assumptions=_ASSUMPTIONS,
    )
