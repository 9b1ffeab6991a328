"""Γ_R with a continuum of requests: Wardrop equilibrium, system optimum, tolls.

Where it stands: on the latency families alone. Classes of requests (say, by prefix) have a rate and
a constant of their own on each worker; loads are requests per second. The equilibrium minimises
Beckmann's potential Σ_j ∫ℓ_j + Σ_rj constants·flow and the optimum the same with marginal costs, so
one solver serves both. It water-fills one class at a time (exact given the others) until the
relative gap closes, and returns that gap: the error is stated, not assumed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from wardrop.games.errors import GameError, NotConvexError
from wardrop.games.ratio import cost_ratio
from wardrop.games.routing.latency import Floats, Latency, as_floats, require
from wardrop.games.routing.saturation import Marginal

_SECANTS = 24  # on a smooth fleet the level is found in about ten
_LEVEL_STEPS = _SECANTS + 60  # then bisection, for a jump at a flat worker
_HAIR = 1e-9  # relative; far above the error of a water-fill, far below any load of interest
_STALLED = 10  # sweeps without progress: floating point is exhausted


@dataclass(frozen=True)
class NonatomicGame:
    """Cost of class r on worker j: constants[r, j] + tolls[j] + ℓ_j(x_j), x_j its total rate.

    Source: Wardrop 1952; Beckmann, McGuire and Winsten 1956; constants per class as in `game.py`.

    Attributes:
        rates: (classes,) requests per second, > 0.
        constants: (classes, workers) seconds ≥ 0.
        latency: delay against requests per second.
        tolls: (workers,) charges in seconds; they steer, and are no part of the social cost.
    """

    rates: ArrayLike
    constants: ArrayLike
    latency: Latency
    tolls: ArrayLike = 0.0

    def __post_init__(self) -> None:
        rates, table = as_floats(self.rates), as_floats(self.constants)
        require(rates.ndim == 1 and bool(np.all(rates > 0)), rates, "rates > 0, one per class")
        require(
            table.ndim == 2 and table.shape[0] == rates.size,
            table.shape,
            f"constants of shape ({rates.size}, workers)",
        )
        require(bool(np.all(table >= 0)), table.min(), "constants ≥ 0 seconds")
        room = float(np.broadcast_to(self.latency.capacity, (table.shape[1],)).sum())
        if rates.sum() >= room:
            raise GameError(
                f"got {rates.sum():g} requests/s on workers that serve {room:g}; expected less "
                "than capacity. Add workers or lower the rate"
            )

    @property
    def workers(self) -> int:
        """How many workers."""
        return as_floats(self.constants).shape[1]


@dataclass(frozen=True)
class Flow:
    """Rates of each class on each worker.

    Attributes:
        flows: (classes, workers) requests per second.
        social_cost: Σ_rj flow·(constant + delay), seconds per second (requests in the system); no
            tolls.
        relative_gap: Σ flow·(cost − cheapest cost) ÷ Σ flow·cost; 0 at an exact equilibrium of the
            game that was solved (for an optimum: of its marginal-cost game).
    """

    flows: Floats
    social_cost: float
    relative_gap: float

    @property
    def loads(self) -> Floats:
        """(workers,) requests per second."""
        return self.flows.sum(axis=0)


def social_cost(game: NonatomicGame, flows: Floats) -> float:
    """Σ_j x_j·ℓ_j(x_j) + Σ_rj flow·constant, seconds per second. Tolls are transfers: left out."""
    loads = flows.sum(axis=0)
    delays = game.latency(loads) * np.ones(game.workers)
    moving = loads > 0
    return float((loads[moving] * delays[moving]).sum() + (flows * as_floats(game.constants)).sum())


def equilibrium(game: NonatomicGame, gap: float = 1e-10, sweeps: int = 2_000) -> Flow:
    """Wardrop equilibrium: no request gains by moving; unique loads if ℓ is increasing.

    Args:
        game: rates below capacity.
        gap: relative gap to stop at; also stops below 1e-6 where floating point ends progress.
        sweeps: passes over all classes before giving up; one suffices for a single class.

    Raises:
        GameError: the gap is still above 1e-4 after `sweeps`.
    """
    return _water_fill(game, game.latency, gap, sweeps)


def optimum(game: NonatomicGame, gap: float = 1e-10, sweeps: int = 2_000) -> Flow:
    """System optimum: the equilibrium when everyone pays the marginal cost ℓ + x·ℓ′, without tolls.

    Raises:
        NotConvexError: the marginal cost falls somewhere (a table with a concave knee).
    """
    marginal = Marginal(game.latency)
    _check_marginal(game, marginal)
    free = replace(game, tolls=0.0)
    found = _water_fill(free, marginal, gap, sweeps)
    return replace(found, social_cost=social_cost(game, found.flows))


def pigou_tolls(game: NonatomicGame, best: Flow | None = None) -> Floats:
    """τ_j = x*_j·ℓ′_j(x*_j) at the optimum x*: the delay that a request causes others, seconds.

    With these charges the optimum is an equilibrium, so the price of anarchy is 1.
    At a kink of ℓ the toll is the one between the two slopes that levels the workers in use.
    Source: Pigou 1920; Beckmann et al. 1956. The flagship `toll` policy charges the same quantity
    [O].
    """
    best = best or optimum(game)
    low, high = (best.loads * game.latency.slope(side) for side in _sides(best.loads))
    _, above = (Marginal(game.latency)(side) for side in _sides(best.loads))
    level = (as_floats(game.constants) + above).min(axis=1)
    price = level[:, None] - as_floats(game.constants) - game.latency(best.loads)
    needed = np.where(best.flows > 0, price, -np.inf).max(axis=0)
    return np.clip(needed, low, np.maximum(low, high))


def price_of_anarchy(game: NonatomicGame) -> float:
    """Social cost at equilibrium ÷ at the optimum; ≥ 1 up to the solver's gap. Source: standard.

    `cost_ratio` defines it for an optimum of 0.
    """
    return cost_ratio(equilibrium(game).social_cost, optimum(game).social_cost)


def _water_fill(game: NonatomicGame, latency: Latency, gap: float, sweeps: int) -> Flow:
    rates, fixed = as_floats(game.rates), as_floats(game.constants) + as_floats(game.tolls)
    flows = _start(rates, np.broadcast_to(latency.capacity, (game.workers,)))
    relative, stalled = np.inf, 0
    for _ in range(sweeps):
        for r in range(rates.size):
            others = flows.sum(axis=0) - flows[r]
            flows[r] = fill_class(latency, fixed[r], others, float(rates[r]))
        before, relative = relative, _relative_gap(fixed, latency, flows)
        stalled = stalled + 1 if relative > 0.9 * before else 0
        if relative <= gap or rates.size == 1 or (stalled >= _STALLED and relative < 1e-6):
            break
    if relative > 1e-4:
        raise GameError(
            f"got a relative gap of {relative:.2g} after {sweeps} sweeps; expected below 1e-4. "
            "Raise `sweeps`, or stay further from capacity"
        )
    return Flow(flows, social_cost(game, flows), relative)


def _start(rates: Floats, capacity: Floats) -> Floats:
    share = np.where(np.isfinite(capacity), capacity, 0.0)
    share = np.where(np.isinf(capacity), max(float(share.max()), 1.0), share)
    return rates[:, None] * (share / share.sum())


def fill_class(latency: Latency, fixed: Floats, others: Floats, rate: float) -> Floats:
    """Exact best reply of one class to the others' loads: raise one level until its rate is placed.

    Args:
        latency: delay against load.
        fixed: (workers,) the class's constants and tolls, seconds.
        others: (workers,) load of all other classes, below capacity.
        rate: requests per second to place; must fit beside the others.

    Returns:
        (workers,) requests per second, summing to `rate`.
    """

    def placed(level: float) -> Floats:
        return np.clip(latency.load_at(level - fixed) - others, 0.0, rate) * np.ones(fixed.size)

    start = latency(others) + fixed
    low, high = float(start.min()), float(start[np.isfinite(start)].max()) + 1e-9
    while placed(high).sum() < rate:
        low, high = high, high + 2.0 * max(high - float(start.min()), 1e-9)
    at_low, at_high = placed(low), placed(high)
    short, over = float(at_low.sum()) - rate, float(at_high.sum()) - rate
    if short >= 0:
        # Workers of constant delay take the whole rate at the lowest level.
        return at_low * (rate / at_low.sum())
    side = 0
    for step in range(_LEVEL_STEPS):
        secant = low - short * (high - low) / (over - short)
        middle = secant if step < _SECANTS else 0.5 * (low + high)
        at_middle = placed(middle)
        miss = float(at_middle.sum()) - rate
        if abs(miss) <= 1e-12 * rate:
            return at_middle * (rate / at_middle.sum())
        if miss < 0:  # Illinois: an end kept twice counts half, so that both ends move
            low, at_low, short, over = middle, at_middle, miss, over * (0.5 if side < 0 else 1.0)
        else:
            high, at_high, over, short = middle, at_middle, miss, short * (0.5 if side > 0 else 1.0)
        side = -1 if miss < 0 else 1
    missing = rate - float(at_low.sum())
    spare = at_high - at_low  # flat workers take what the last level leaves open
    full = float(spare.sum())
    return at_low + spare * (missing / full) if full > 0 else at_low * (rate / at_low.sum())


def _sides(loads: Floats) -> tuple[Floats, Floats]:
    """Loads a hair below and above: the two sides of a kink, where a marginal cost jumps."""
    return loads * (1.0 - _HAIR), loads * (1.0 + _HAIR) + _HAIR * float(loads.max()) * 1e-3


def _relative_gap(fixed: Floats, latency: Latency, flows: Floats) -> float:
    """What moving could save ÷ what is paid; leave at the lower side, join at the upper."""
    below, above = _sides(flows.sum(axis=0))
    leaving, joining = fixed + latency(below), fixed + latency(above)
    carried = flows > 0
    saved = np.maximum(leaving - joining.min(axis=1, keepdims=True), 0.0)
    paid = float((flows[carried] * leaving[carried]).sum())
    return float((flows[carried] * saved[carried]).sum()) / paid if paid > 0 else 0.0


def _check_marginal(game: NonatomicGame, marginal: Marginal) -> None:
    top = np.minimum(as_floats(game.rates).sum(), 0.999 * game.latency.capacity)
    grid = np.linspace(0.0, 1.0, 513)[:, None] * (top * np.ones(game.workers))
    values = marginal(grid)
    if (np.diff(values, axis=0) < -1e-9 * np.abs(values[1:])).any():
        raise NotConvexError(
            "got a latency whose marginal cost ℓ + x·ℓ′ falls with load; expected x·ℓ(x) convex. "
            "Take the convex hull of the measurements"
        )
