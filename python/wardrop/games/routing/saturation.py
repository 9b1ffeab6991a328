"""The saturating latency, measured tables, fleets of mixed families, and marginal costs.

Where it stands: beside `latency.py`, the families that are ours or that come from measurement, and
the two wrappers over any family: `Mixed` (unlike families in one fleet) and `Marginal` (the social
cost of one more unit, Pigou's price), under which the system optimum *is* an equilibrium.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wardrop.games.routing.latency import (
    MM1,
    Affine,
    Floats,
    Latency,
    as_floats,
    invert,
    reach,
    require,
)


@dataclass(frozen=True)
class Saturating:
    """ℓ(n) = base + per_unit·n + gain·max(0, n − knee)/(1 − n/limit)^power.

    Source: the paper says that latency is about linear below a knee and gains a continuous singular
    term near capacity [R]; this closed form is ours [O].

    Attributes:
        base: seconds at zero load.
        per_unit: seconds per unit below the knee.
        gain: seconds per unit past the knee, before the singular factor.
        knee: n*, load at which the singular term starts, 0 ≤ knee < limit.
        limit: K, in-flight limit at which the delay diverges.
        power: q ≥ 1, the order of the pole.
    """

    base: ArrayLike
    per_unit: ArrayLike
    gain: ArrayLike
    knee: ArrayLike
    limit: ArrayLike
    power: float = 1.0

    def __post_init__(self) -> None:
        for name in ("base", "per_unit", "gain", "knee"):
            value = as_floats(getattr(self, name))
            require(bool(np.all(value >= 0)), f"{name} = {value}", f"{name} ≥ 0")
        require(
            bool(np.all(as_floats(self.knee) < as_floats(self.limit))),
            f"knee {self.knee}, limit {self.limit}",
            "knee < limit",
        )
        require(self.power >= 1, self.power, "power ≥ 1")

    @property
    def workers(self) -> int:
        """How many workers the parameters describe."""
        parts = (self.base, self.per_unit, self.gain, self.knee, self.limit)
        return int(np.prod(np.broadcast_shapes(*(as_floats(part).shape for part in parts))))

    @property
    def capacity(self) -> Floats:
        """(workers,) the in-flight limit."""
        return as_floats(self.limit) * np.ones(self.workers)

    def _free(self, load: Floats) -> Floats:
        free = 1.0 - load / as_floats(self.limit)
        return np.where(free > 0, free, np.nan)

    def __call__(self, load: ArrayLike) -> Floats:
        """The formula above, seconds; inf from the limit on."""
        n = as_floats(load)
        past = np.maximum(n - as_floats(self.knee), 0.0)
        singular = as_floats(self.gain) * past * self._free(n) ** -self.power
        return (
            as_floats(self.base)
            + as_floats(self.per_unit) * n
            + np.nan_to_num(singular, nan=np.inf)
        )

    def slope(self, load: ArrayLike) -> Floats:
        """per_unit + gain·[1/(1−u)^q + q·(n−n*)/(K(1−u)^(q+1))] past the knee, u = n/K."""
        n = as_floats(load)
        free, past = self._free(n), n - as_floats(self.knee)
        extra = free**-self.power + self.power * past / as_floats(self.limit) * free ** (
            -self.power - 1
        )
        rise = np.where(past > 0, as_floats(self.gain) * extra, 0.0 * free)
        return as_floats(self.per_unit) + np.nan_to_num(rise, nan=np.inf)

    def integral(self, load: ArrayLike) -> Floats:
        """Closed form in u = 1 − x/K: x − n* = (K − n*) − K·u, a sum of powers of u."""
        n = as_floats(load)
        limit, knee = as_floats(self.limit), as_floats(self.knee)
        start = 1.0 - knee / limit
        end = np.minimum(self._free(n), start)
        area = (limit - knee) * self._power_area(end, start, self.power)
        area = area - limit * self._power_area(end, start, self.power - 1.0)
        smooth = as_floats(self.base) * n + 0.5 * as_floats(self.per_unit) * n * n
        return smooth + np.nan_to_num(as_floats(self.gain) * limit * area, nan=np.inf)

    @staticmethod
    def _power_area(low: Floats, high: Floats, power: float) -> Floats:
        """∫_low^high u^(−power) du."""
        if power == 1.0:
            return np.log(high / low)
        return (high ** (1.0 - power) - low ** (1.0 - power)) / (1.0 - power)

    def load_at(self, seconds: ArrayLike) -> Floats:
        """By bisection on [0, limit)."""
        level = as_floats(seconds) + np.zeros(self.workers)
        return invert(self, level, self.capacity)


@dataclass(frozen=True)
class Table:
    """Measured delays: piecewise linear between points, the last slope beyond them.

    Source: ours. The points come from a timing table or from the reports of a fleet. One
    curve for all workers (`Mixed` takes several).

    Attributes:
        load: (points,) strictly increasing, first ≥ 0; below the first the first delay holds.
        seconds: (points,) non-decreasing delays.
    """

    load: ArrayLike
    seconds: ArrayLike

    def __post_init__(self) -> None:
        load, seconds = as_floats(self.load), as_floats(self.seconds)
        require(load.ndim == 1 and load.size >= 2, load.shape, "at least two points")
        require(load.shape == seconds.shape, seconds.shape, f"one delay per load, {load.shape}")
        require(bool(np.all(np.diff(load) > 0)) and load[0] >= 0, load, "increasing loads ≥ 0")
        rising = bool(np.all(np.diff(seconds) >= 0)) and seconds[0] >= 0
        require(rising, seconds, "non-decreasing delays ≥ 0 (smooth the measurements first)")

    @property
    def workers(self) -> int:
        """One curve; broadcasts over any number of workers."""
        return 1

    @property
    def capacity(self) -> Floats:
        """Infinite: the last slope continues."""
        return np.full(1, np.inf)

    def _segments(self) -> tuple[Floats, Floats, Floats]:
        """Starts of the segments, delay there and slope on each; the first is flat from 0."""
        load, seconds = as_floats(self.load), as_floats(self.seconds)
        slopes = np.diff(seconds) / np.diff(load)
        starts = np.concatenate([[0.0], load[:-1]])
        return starts, np.concatenate([seconds[:1], seconds[:-1]]), np.concatenate([[0.0], slopes])

    def _segment(self, load: Floats) -> NDArray[np.intp]:
        starts, _, _ = self._segments()
        return np.clip(np.searchsorted(starts, load, side="right") - 1, 0, starts.size - 1)

    def __call__(self, load: ArrayLike) -> Floats:
        """Linear interpolation, seconds."""
        x = as_floats(load)
        starts, values, slopes = self._segments()
        i = self._segment(x)
        return values[i] + slopes[i] * (x - starts[i])

    def slope(self, load: ArrayLike) -> Floats:
        """Slope of the segment that holds the load (the right one at a point)."""
        return self._segments()[2][self._segment(as_floats(load))]

    def integral(self, load: ArrayLike) -> Floats:
        """Exact area under the broken line."""
        x = as_floats(load)
        starts, values, slopes = self._segments()
        widths = np.diff(starts)
        whole = np.concatenate(
            [[0.0], np.cumsum(values[:-1] * widths + 0.5 * slopes[:-1] * widths**2)]
        )
        i = self._segment(x)
        d = x - starts[i]
        return whole[i] + values[i] * d + 0.5 * slopes[i] * d * d

    def load_at(self, seconds: ArrayLike) -> Floats:
        """By bisection; inf above a table that ends flat."""
        level = as_floats(seconds)
        _, values, slopes = self._segments()
        ends_flat = slopes[-1] == 0.0
        capacity = np.where(ends_flat, float(as_floats(self.load)[-1]) + 1.0, np.inf)
        found = invert(self, level, reach(self, level, capacity))
        return np.where(ends_flat & (level >= values[-1]), np.inf, found)


@dataclass(frozen=True)
class Mixed:
    """A fleet of unlike families, side by side in the worker axis. Source: ours.

    Attributes:
        parts: latencies; part p covers the next `parts[p].workers` workers.
    """

    parts: Sequence[Latency]
    _bounds: tuple[int, ...] = field(init=False, repr=False, default=())

    def __post_init__(self) -> None:
        require(len(self.parts) > 0, "no parts", "at least one latency")
        ends = np.cumsum([part.workers for part in self.parts])
        object.__setattr__(self, "_bounds", (0, *(int(end) for end in ends)))

    @property
    def workers(self) -> int:
        """All workers of all parts."""
        return self._bounds[-1]

    @property
    def capacity(self) -> Floats:
        """(workers,) each part's own."""
        return np.concatenate([part.capacity for part in self.parts])

    def split(self, value: ArrayLike) -> list[Floats]:
        """Each part's slice of an array whose last axis is the workers."""
        whole = as_floats(value)
        whole = np.broadcast_to(whole, np.broadcast_shapes(whole.shape, (self.workers,)))
        edges = zip(self._bounds[:-1], self._bounds[1:], strict=True)
        return [whole[..., start:end] for start, end in edges]

    def _join(self, pieces: Sequence[Floats]) -> Floats:
        return np.concatenate(pieces, axis=-1)

    def __call__(self, load: ArrayLike) -> Floats:
        """Each part's delay at its own loads."""
        pairs = zip(self.parts, self.split(load), strict=True)
        return self._join([part(piece) for part, piece in pairs])

    def slope(self, load: ArrayLike) -> Floats:
        """Each part's slope at its own loads."""
        pairs = zip(self.parts, self.split(load), strict=True)
        return self._join([part.slope(piece) for part, piece in pairs])

    def integral(self, load: ArrayLike) -> Floats:
        """Each part's area at its own loads."""
        pairs = zip(self.parts, self.split(load), strict=True)
        return self._join([part.integral(piece) for part, piece in pairs])

    def load_at(self, seconds: ArrayLike) -> Floats:
        """Each part's load at its own level."""
        pairs = zip(self.parts, self.split(seconds), strict=True)
        return self._join([part.load_at(piece) for part, piece in pairs])


@dataclass(frozen=True)
class Marginal:
    """m(x) = ℓ(x) + x·ℓ′(x): the cost of one more unit to all. Source: Pigou 1920.

    Its integral is x·ℓ(x), so minimising the potential of the marginal game minimises social cost:
    the system optimum is the equilibrium of travellers who pay m (Beckmann, McGuire and Winsten
    1956).

    Attributes:
        latency: any family with x·ℓ(x) convex.
    """

    latency: Latency

    @property
    def workers(self) -> int:
        """As the latency's."""
        return self.latency.workers

    @property
    def capacity(self) -> Floats:
        """As the latency's."""
        return self.latency.capacity

    def __call__(self, load: ArrayLike) -> Floats:
        """ℓ(x) + x·ℓ′(x), seconds."""
        x = as_floats(load)
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(
                self.latency(x) + x * self.latency.slope(x), nan=np.inf, posinf=np.inf
            )

    def slope(self, load: ArrayLike) -> Floats:
        """Central difference of the marginal cost; used for displays only."""
        x = as_floats(load)
        step = 1e-6 * np.maximum(x, 1.0)
        return (self(x + step) - self(np.maximum(x - step, 0.0))) / (
            x + step - np.maximum(x - step, 0)
        )

    def integral(self, load: ArrayLike) -> Floats:
        """x·ℓ(x): the social cost of the worker."""
        x = as_floats(load)
        return x * self.latency(x)

    def load_at(self, seconds: ArrayLike) -> Floats:
        """Closed form for affine and M/M/1 parts, else bisection below ℓ's own load (m ≥ ℓ)."""
        level = as_floats(seconds) + np.zeros(self.workers)
        return _marginal_load(self.latency, level)


def _marginal_load(latency: Latency, level: Floats) -> Floats:
    if isinstance(latency, Mixed):
        pairs = zip(latency.parts, latency.split(level), strict=True)
        return np.concatenate([_marginal_load(part, piece) for part, piece in pairs], axis=-1)
    if isinstance(latency, Affine):  # base + 2·per_unit·x
        return Affine(latency.base, 2.0 * as_floats(latency.per_unit)).load_at(level)
    if isinstance(latency, MM1):  # rate/(rate − x)²
        rate, positive = as_floats(latency.rate), np.maximum(level, np.finfo(np.float64).tiny)
        return np.maximum(rate - np.sqrt(rate / positive), 0.0)
    upper = latency.load_at(level)
    found = invert(Marginal(latency), level, np.where(np.isinf(upper), 0.0, upper))
    return np.where(np.isinf(upper), np.inf, found)
