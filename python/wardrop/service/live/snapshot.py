"""The snapshot of one second, and the history that the charts of a new page begin with.

A `Builder` turns observations into snapshots. It holds what an observation lacks: the windows of
percentiles and the points of the last 15 minutes. Cost: O(workers + bins) per second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from wardrop.control.regime import Regime
from wardrop.service.live.observation import Observation, Pool, PriceOfAnarchy
from wardrop.service.live.percentiles import Percentiles, PercentileWindow
from wardrop.service.live.problems import Departed, Problem, problems_of

SCHEMA = "wardrop.live.v1"
HISTORY_POINTS = 900
"""Points of the history: 15 minutes at one point per second."""
MAX_MODELS = 16
"""Models with a history; more models are counted, and are shown without one."""
_WINDOW_S = 10.0
_DEPARTED_S = 300.0
_MAX_DEPARTED = 64

Point = dict[str, float | None]
"""Values of one second by the name of their column."""


class ModelSnapshot(msgspec.Struct):
    """One model at one moment.

    Attributes:
        ttft: Percentiles of the time to first token over 10 s; None without an answer.
        itl: Percentiles of the time between tokens over 10 s; None without an answer.
        price_of_anarchy: Paid over lower bound; None while it is off.
        problems: What is wrong with the workers, the worst first.
        point: The newest values of the charts.
    """

    name: str
    block_size: int
    ttft: Percentiles | None
    itl: Percentiles | None
    price_of_anarchy: PriceOfAnarchy | None
    pools: list[Pool]
    problems: list[Problem]
    point: Point


class Viewers(msgspec.Struct):
    """Pages that are open now, and pages that were refused since the start."""

    open: int = 0
    refused: int = 0


class Snapshot(msgspec.Struct):
    """Everything that changes every second.

    Attributes:
        schema: Name and version of this form.
        at_s: Unix time in seconds.
        regime: `below`, `transition` or `saturated`; None before the first sample.
        control: Figures of the control plane by name, such as `arrivals_per_second`.
        models_without_history: Models beyond the limit of models with a history.
        viewers: Pages that are open, and pages that were refused.
    """

    schema: str
    at_s: float
    regime: str | None
    control: Mapping[str, float]
    models: list[ModelSnapshot]
    models_without_history: int
    viewers: Viewers


class History(msgspec.Struct):
    """Columns of the last points of each model, by model and column; `at_s` is Unix time."""

    schema: str
    models: dict[str, dict[str, list[float | None]]]


class _ModelState:
    def __init__(self) -> None:
        self.ttft = PercentileWindow(_WINDOW_S)
        self.itl = PercentileWindow(_WINDOW_S)
        self.points: deque[Point] = deque(maxlen=HISTORY_POINTS)
        self.workers: set[tuple[str, int, str]] = set()
        self.departed: deque[Departed] = deque(maxlen=_MAX_DEPARTED)

    def follow(self, pools: list[Pool], at_s: float) -> list[Departed]:
        """Compare the workers with those of the second before."""
        present = {(w.instance, w.dp_rank, pool.role) for pool in pools for w in pool.workers}
        gone = sorted(self.workers - present)
        self.workers = present
        still = (
            one
            for one in self.departed
            if at_s - one.at_s < _DEPARTED_S
            and (one.instance, one.dp_rank, one.role) not in present
        )
        self.departed = deque(still, _MAX_DEPARTED)
        self.departed.extend(Departed(*worker, at_s) for worker in gone)
        return list(self.departed)


class Builder:
    """Makes one snapshot per observation, and keeps the history."""

    def __init__(self) -> None:
        self._models: dict[str, _ModelState] = {}

    def build(
        self,
        observation: Observation,
        at_s: float,
        control: Mapping[str, float],
        viewers: Viewers,
    ) -> Snapshot:
        """The snapshot of one observation.

        Args:
            observation: Facts of the fleet.
            at_s: Unix time in seconds.
            control: Figures of the control plane, with the regime as a number.
            viewers: Pages that are open, and pages that were refused.
        """
        regime = int(control["regime"]) if "regime" in control else None
        regime_name = None if regime is None else Regime(regime).name.lower()
        names = {model.name for model in observation.models}
        self._models = {name: state for name, state in self._models.items() if name in names}
        models: list[ModelSnapshot] = []
        left_out = 0
        for model in observation.models:
            state = self._models.get(model.name) or _ModelState()
            if model.name in self._models or len(self._models) < MAX_MODELS:
                self._models[model.name] = state
            else:
                left_out += 1
            ttft = state.ttft.take(observation.now_s, model.ttft_counts)
            itl = state.itl.take(observation.now_s, model.itl_counts)
            point = _point(ttft, itl, model.pools) | _bound_point(model.price_of_anarchy)
            point |= {"at_s": at_s, "regime": regime, "knee_share": control.get("knee_share")}
            state.points.append(point)
            models.append(
                ModelSnapshot(
                    model.name,
                    model.block_size,
                    ttft,
                    itl,
                    model.price_of_anarchy,
                    model.pools,
                    problems_of(model.pools, state.follow(model.pools, at_s), regime_name),
                    point,
                )
            )
        return Snapshot(SCHEMA, at_s, regime_name, control, models, left_out, viewers)

    def history(self) -> History:
        """The points that are kept, as columns."""
        models: dict[str, dict[str, list[float | None]]] = {}
        for name, state in self._models.items():
            columns = sorted({column for point in state.points for column in point})
            models[name] = {
                column: [_rounded(point.get(column)) for point in state.points]
                for column in columns
            }
        return History(SCHEMA, models)


def _point(
    ttft: Percentiles | None,
    itl: Percentiles | None,
    pools: list[Pool],
) -> Point:
    point: Point = {}
    for name, percentiles in (("ttft", ttft), ("itl", itl)):
        for share in ("p50", "p95", "p99"):
            value = None if percentiles is None else getattr(percentiles, f"{share}_s")
            point[f"{name}_{share}_s"] = value
    # A request of a split fleet is booked at both pools: the larger count is that of requests.
    running = [sum(worker.active_requests for worker in pool.workers) for pool in pools]
    point["running"] = max(running, default=0)
    point["waiting"] = max((pool.waiting for pool in pools), default=0)
    for pool in pools:
        if pool.anarchy is not None:
            point[f"poa_{pool.role}"] = pool.anarchy.poa
            point[f"poa_low_{pool.role}"] = pool.anarchy.low
            point[f"poa_high_{pool.role}"] = pool.anarchy.high
            for part in ("cache", "load", "split"):
                lost = getattr(pool.anarchy, f"lost_to_{part}")
                point[f"lost_to_{part}_{pool.role}"] = lost
    return point


def _bound_point(price: PriceOfAnarchy | None) -> Point:
    point: Point = {}
    for name in ("ttft", "e2e"):
        figure = None if price is None else getattr(price, name)
        for end in ("value", "low", "high"):
            value = None if figure is None else getattr(figure, end)
            point[f"bound_{name}_{end}"] = value
    return point


def _rounded(value: float | None) -> float | None:
    """Six digits are more than a chart shows; times keep the millisecond."""
    if value is None or abs(value) > 1e6:
        return value if value is None else round(value, 3)
    return float(f"{value:.6g}")
