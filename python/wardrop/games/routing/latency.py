"""Latency families: seconds against load, for a whole fleet at once.

Where it stands: the bottom of Γ_R. Every other module of `routing` asks a `Latency` three things:
the delay at a load, the area under it (a potential) and the load at which it reaches a delay (an
equilibrium). Parameters are scalars or arrays of shape (workers,), so one object is a fleet of
unlike workers and no loop runs over them.

Loads are requests in flight (atomic games) or requests per second (nonatomic games); all delays are
seconds. A load's last axis is the worker axis. Families here are standard; `Saturating` (in
`saturation.py`) is the project's working form of what the paper describes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wardrop.games.errors import GameError

Floats: TypeAlias = NDArray[np.float64]

_BISECTIONS = 52  # halves an interval to one ulp of its upper end


class Latency(Protocol):
    """Non-decreasing delay of each of `workers` workers against its own load."""

    @property
    def workers(self) -> int:
        """How many workers; 1 also broadcasts over any number."""
        ...

    @property
    def capacity(self) -> Floats:
        """(workers,) load at which the delay diverges; inf when it never does."""
        ...

    def __call__(self, load: ArrayLike) -> Floats:
        """ℓ_j(load_j), seconds; inf at or past capacity."""
        ...

    def slope(self, load: ArrayLike) -> Floats:
        """dℓ_j/dload, seconds per unit of load."""
        ...

    def integral(self, load: ArrayLike) -> Floats:
        """∫₀^load ℓ_j(x) dx: the Beckmann term of a worker."""
        ...

    def load_at(self, seconds: ArrayLike) -> Floats:
        """Largest load with ℓ_j(load) ≤ seconds; 0 if ℓ_j(0) is already above, inf if unbounded."""
        ...


def as_floats(value: ArrayLike) -> Floats:
    """The value as a float64 array (0-d for a scalar)."""
    return np.asarray(value, dtype=np.float64)


def require(holds: bool, got: object, expected: str) -> None:
    """Refuse an argument unless `holds`.

    Raises:
        GameError: `holds` is false; the text has what was received and what is expected.
    """
    if not holds:
        raise GameError(f"got {got}; expected {expected}")


def invert(curve: Callable[[Floats], Floats], seconds: Floats, upper: Floats) -> Floats:
    """Largest load in [0, upper] at which a non-decreasing curve is ≤ seconds, by bisection.

    Args:
        curve: load (…, workers) → seconds, non-decreasing per worker.
        seconds: (…, workers) level to reach.
        upper: (…, workers) finite load to search up to; pass a load past the answer.

    Returns:
        (…, workers) load, 0 where curve(0) > seconds. Error: below 1e-15 of `upper`.
    """
    shape = np.broadcast_shapes(seconds.shape, upper.shape)
    low, high = np.zeros(shape), np.broadcast_to(upper, shape).copy()
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        below = curve(middle) <= seconds
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return low


def reach(curve: Callable[[Floats], Floats], seconds: Floats, capacity: Floats) -> Floats:
    """A finite load past which a curve exceeds `seconds`, for `invert`; grows by doubling."""
    shape = np.broadcast_shapes(seconds.shape, capacity.shape)
    upper = np.where(np.isfinite(capacity), capacity, 1.0) * np.ones(shape)
    for _ in range(200):
        short = np.isinf(capacity) & (curve(upper) <= seconds)
        if not short.any():
            break
        upper = np.where(short, 2.0 * upper, upper)
    return upper


@dataclass(frozen=True)
class Affine:
    """ℓ(x) = base + per_unit·x. Source: standard; the paper's regime below the knee [R].

    Attributes:
        base: seconds at zero load, ≥ 0.
        per_unit: seconds per unit of load, ≥ 0.
    """

    base: ArrayLike
    per_unit: ArrayLike

    def __post_init__(self) -> None:
        base, per_unit = as_floats(self.base), as_floats(self.per_unit)
        require(bool(np.all(base >= 0)), base, "base ≥ 0 seconds")
        require(bool(np.all(per_unit >= 0)), per_unit, "per_unit ≥ 0 (delay never falls with load)")

    @property
    def workers(self) -> int:
        """How many workers the parameters describe."""
        return np.broadcast(as_floats(self.base), as_floats(self.per_unit)).size

    @property
    def capacity(self) -> Floats:
        """Infinite: an affine worker never diverges."""
        return np.full(self.workers, np.inf)

    def __call__(self, load: ArrayLike) -> Floats:
        """Base + per_unit·load, seconds."""
        return as_floats(self.base) + as_floats(self.per_unit) * as_floats(load)

    def slope(self, load: ArrayLike) -> Floats:
        """The constant per_unit."""
        return as_floats(self.per_unit) + 0.0 * as_floats(load)

    def integral(self, load: ArrayLike) -> Floats:
        """base·x + per_unit·x²/2."""
        x = as_floats(load)
        return as_floats(self.base) * x + 0.5 * as_floats(self.per_unit) * x * x

    def load_at(self, seconds: ArrayLike) -> Floats:
        """(seconds − base)/per_unit; inf on a flat worker that is cheap enough."""
        gap = as_floats(seconds) - as_floats(self.base)
        per_unit = as_floats(self.per_unit) + 0.0 * gap
        flat = np.where(gap >= 0, np.inf, 0.0)
        safe = np.where(per_unit > 0, per_unit, 1.0)
        return np.where(per_unit > 0, np.maximum(gap / safe, 0.0), flat)


@dataclass(frozen=True)
class Polynomial:
    """ℓ(x) = Σ_d coefficients[d]·x^d with coefficients ≥ 0. Source: standard.

    Attributes:
        coefficients: (degree + 1,) or (degree + 1, workers); [d] multiplies load^d, seconds.
    """

    coefficients: ArrayLike

    def __post_init__(self) -> None:
        table = self._table
        require(table.ndim == 2, table.shape, "coefficients of shape (degree+1,) or (degree+1, m)")
        require(bool(np.all(table >= 0)), table, "coefficients ≥ 0 (delay never falls with load)")

    @property
    def _table(self) -> Floats:
        table = as_floats(self.coefficients)
        return table[:, None] if table.ndim == 1 else table

    @property
    def degree(self) -> int:
        """The highest power of load."""
        return self._table.shape[0] - 1

    @property
    def workers(self) -> int:
        """How many workers the coefficients describe."""
        return self._table.shape[1]

    @property
    def capacity(self) -> Floats:
        """Infinite: a polynomial worker never diverges."""
        return np.full(self.workers, np.inf)

    def __call__(self, load: ArrayLike) -> Floats:
        """Σ_d c_d·load^d, seconds."""
        x, total = as_floats(load), as_floats(0.0)
        for row in self._table[::-1]:
            total = total * x + row
        return total

    def slope(self, load: ArrayLike) -> Floats:
        """Σ_d d·c_d·load^(d−1)."""
        x = as_floats(load)
        total = np.zeros(np.broadcast_shapes(x.shape, (self.workers,)))
        for power in range(1, self.degree + 1):
            total = total + power * self._table[power] * x ** (power - 1)
        return total

    def integral(self, load: ArrayLike) -> Floats:
        """Σ_d c_d·x^(d+1)/(d+1)."""
        x = as_floats(load)
        total = np.zeros(np.broadcast_shapes(x.shape, (self.workers,)))
        for power, row in enumerate(self._table):
            total = total + row * x ** (power + 1) / (power + 1)
        return total

    def load_at(self, seconds: ArrayLike) -> Floats:
        """By bisection; inf on a constant worker that is cheap enough."""
        level = as_floats(seconds) + np.zeros(self.workers)
        flat = np.all(self._table[1:] == 0, axis=0)
        found = invert(self, level, reach(self, level, np.where(flat, 1.0, np.inf)))
        return np.where(flat, np.where(level >= self._table[0], np.inf, 0.0), found)


@dataclass(frozen=True)
class MM1:
    """ℓ(x) = 1/(rate − x), the mean sojourn time of an M/M/1 queue. Source: standard.

    Attributes:
        rate: service rate μ, units of load (requests per second in nonatomic games), > 0.
    """

    rate: ArrayLike

    def __post_init__(self) -> None:
        require(bool(np.all(as_floats(self.rate) > 0)), self.rate, "rate > 0")

    @property
    def workers(self) -> int:
        """How many workers the rates describe."""
        return as_floats(self.rate).size

    @property
    def capacity(self) -> Floats:
        """(workers,) the service rate itself."""
        return np.atleast_1d(as_floats(self.rate))

    def _room(self, load: ArrayLike) -> Floats:
        room = as_floats(self.rate) - as_floats(load)
        return np.where(room > 0, room, np.nan)

    def __call__(self, load: ArrayLike) -> Floats:
        """1/(rate − load), seconds; inf from rate on."""
        return np.nan_to_num(1.0 / self._room(load), nan=np.inf)

    def slope(self, load: ArrayLike) -> Floats:
        """1/(rate − load)²; inf from rate on."""
        return np.nan_to_num(self._room(load) ** -2.0, nan=np.inf)

    def integral(self, load: ArrayLike) -> Floats:
        """ln(rate/(rate − load)); inf from rate on."""
        return np.nan_to_num(np.log(as_floats(self.rate) / self._room(load)), nan=np.inf)

    def load_at(self, seconds: ArrayLike) -> Floats:
        """Rate − 1/seconds, never below 0."""
        level = np.maximum(as_floats(seconds), np.finfo(np.float64).tiny)
        return np.maximum(as_floats(self.rate) - 1.0 / level, 0.0)
