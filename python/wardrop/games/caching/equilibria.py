"""Equilibria of Γ_KV: all of them for a small fleet, one by best response for a large one.

Where it stands: on `game.py`. Without capacity limits objects do not interact, so a game of many
objects is enumerated object by object: (tiers + 1)^workers placements each. With limits a worker's
strategy is a whole row, and the product of all rows is enumerated. Both are exact.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from wardrop.games.caching.game import Placement, PlacementGame, empty_placement
from wardrop.games.errors import GameError
from wardrop.games.ratio import cost_ratio
from wardrop.games.routing.latency import Floats, as_floats

PROFILE_LIMIT = 400_000
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class PlacementReport:
    """The loss of selfish placement. Costs are seconds of delay per second.

    Attributes:
        optimum_cost: least social cost.
        best_equilibrium_cost: cost of the cheapest pure equilibrium; nan if none exists.
        worst_equilibrium_cost: cost of the dearest pure equilibrium; nan if none exists.
        equilibria: number of pure equilibria (product over independent objects).
    """

    optimum_cost: float
    best_equilibrium_cost: float
    worst_equilibrium_cost: float
    equilibria: int

    @property
    def price_of_anarchy(self) -> float:
        """Worst equilibrium ÷ optimum; see `cost_ratio` for an optimum of 0."""
        return cost_ratio(self.worst_equilibrium_cost, self.optimum_cost)

    @property
    def price_of_stability(self) -> float:
        """Best equilibrium ÷ optimum; see `cost_ratio` for an optimum of 0."""
        return cost_ratio(self.best_equilibrium_cost, self.optimum_cost)


def single_object(game: PlacementGame, index: int) -> PlacementGame:
    """The game of one object alone: a game without capacity limits is the sum over objects."""
    origin = np.broadcast_to(as_floats(game.origin), (game.objects,))
    return replace(game, demand=as_floats(game.demand)[:, [index]], origin=origin[[index]])


def analyse_placement(game: PlacementGame) -> PlacementReport:
    """Exact optimum and all pure equilibria by enumeration.

    Raises:
        GameError: more than `PROFILE_LIMIT` placements to check.
    """
    if game.capacitated or game.objects == 1:
        return _enumerate(game)
    parts = [_enumerate(single_object(game, o)) for o in range(game.objects)]
    return PlacementReport(
        optimum_cost=sum(part.optimum_cost for part in parts),
        best_equilibrium_cost=sum(part.best_equilibrium_cost for part in parts),
        worst_equilibrium_cost=sum(part.worst_equilibrium_cost for part in parts),
        equilibria=math.prod(part.equilibria for part in parts),
    )


def rows_of(game: PlacementGame, worker: int) -> Placement:
    """Every row that fits the worker's tiers.

    Returns:
        (rows, objects) int8: 0 for an object that is not kept, t for one in `tiers[t − 1]`.

    Raises:
        GameError: There are more than `PROFILE_LIMIT` rows before the capacities are considered.
    """
    count = (game.tiers + 1) ** game.objects
    if count > PROFILE_LIMIT:
        raise GameError(
            f"got {count} rows a worker; expected at most {PROFILE_LIMIT}. Fewer objects"
        )
    choices = itertools.product(range(game.tiers + 1), repeat=game.objects)
    rows = np.array(list(choices), dtype=np.int8)
    used = np.stack([(rows == tier + 1).sum(axis=1) for tier in range(game.tiers)], axis=1)
    return rows[np.all(used <= game.room[worker], axis=1)]


def _enumerate(game: PlacementGame) -> PlacementReport:
    rows = [rows_of(game, worker) for worker in range(game.workers)]
    shape = tuple(len(row) for row in rows)
    count = math.prod(shape)
    if count > PROFILE_LIMIT:
        raise GameError(
            f"got {count} placements; expected at most {PROFILE_LIMIT} to enumerate. Use "
            "settle (an equilibrium) and optimal_placement (the exact optimum)"
        )
    tensor = _cost_tensor(game, rows, shape)
    stable = np.ones(shape, dtype=bool)
    for worker in range(game.workers):
        least = tensor[worker].min(axis=worker, keepdims=True)
        stable &= (tensor[worker] <= least + _TOLERANCE) | np.isinf(least)
    social = tensor.sum(axis=0)
    found = social[stable & np.isfinite(social)]
    return PlacementReport(
        optimum_cost=float(social.min()),
        best_equilibrium_cost=float(found.min()) if found.size else math.nan,
        worst_equilibrium_cost=float(found.max()) if found.size else math.nan,
        equilibria=int(found.size),
    )


def _cost_tensor(game: PlacementGame, rows: list[Placement], shape: tuple[int, ...]) -> Floats:
    indices = np.indices(shape).reshape(game.workers, -1)
    placements = np.stack([rows[w][indices[w]] for w in range(game.workers)], axis=1)
    return game.costs(placements).T.reshape((game.workers, *shape))


@dataclass(frozen=True)
class Settled:
    """Where best response came to rest.

    Attributes:
        placement: (workers, objects).
        converged: whether no worker gains by changing its row.
        rounds: passes over all workers.
    """

    placement: Placement
    converged: bool
    rounds: int


def settle(
    game: PlacementGame, start: Placement | None = None, seed: int | None = None, rounds: int = 200
) -> Settled:
    """Workers in turn (shuffled by `seed`) take their best row until no worker changes.

    Pure equilibria always exist without limits (Chun et al. 2004, by construction) and for binary
    preferences (Etesami and Başar 2017); elsewhere the dynamics may not rest, which is reported.
    """
    placement = (empty_placement(game) if start is None else start).copy()
    order = np.arange(game.workers)
    if seed is not None:
        np.random.default_rng(seed).shuffle(order)
    for turn in range(1, rounds + 1):
        changed = False
        for worker in order.tolist():
            row = game.best_response(placement, worker)
            before = game.costs(placement)[worker]
            trial = placement.copy()
            trial[worker] = row
            if game.costs(trial)[worker] < before - _TOLERANCE * max(1.0, before):
                placement, changed = trial, True
        if not changed:
            return Settled(placement, True, turn)
    return Settled(placement, False, rounds)
