"""The exact placement optimum, by mixed-integer programming.

Where it stands: the reference for every placement. Binary y says which worker keeps which object in
which tier; x routes each demand to one source. For fixed y the x are integral on their own, so only
y is declared integer. The relaxation is the usual tight one of facility location (x ≤ y, one row
each), so HiGHS proves optimality quickly; the proof (gap 0) is checked, never assumed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from wardrop.games.caching.equilibria import single_object
from wardrop.games.caching.game import Placement, PlacementGame, empty_placement
from wardrop.games.errors import GameError
from wardrop.games.routing.latency import Floats, as_floats


@dataclass(frozen=True)
class OptimalPlacement:
    """A proven optimum.

    Attributes:
        placement: (workers, objects).
        social_cost: seconds of delay per second.
    """

    placement: Placement
    social_cost: float


def optimal_placement(game: PlacementGame, time_limit_s: float = 60.0) -> OptimalPlacement:
    """The placement of least social cost.

    Without limits each object is its own facility-location problem and is solved alone; with limits
    all are solved together: workers²·objects·tiers variables.

    Raises:
        GameError: not proven optimal within `time_limit_s`.
    """
    if not game.capacitated and game.objects > 1:
        parts = [
            optimal_placement(single_object(game, o), time_limit_s) for o in range(game.objects)
        ]
        placement = np.concatenate([part.placement for part in parts], axis=1)
    else:
        placement = _solve(game, time_limit_s)
    return OptimalPlacement(placement, game.social_cost(placement))


def _solve(game: PlacementGame, time_limit_s: float) -> Placement:
    m, objects, tiers = game.workers, game.objects, game.tiers
    keepers = m * objects * tiers  # y[i, o, t] at (i·objects + o)·tiers + t
    reader, thing = np.nonzero(as_floats(game.demand) > 0)
    source = np.arange(m * tiers)  # holder j, tier t at j·tiers + t; the last source is the origin
    kept_read = as_floats(game.distance)[:, source // tiers] + as_floats(game.read)[source % tiers]
    origin = np.broadcast_to(as_floats(game.origin), (objects,))
    seconds = np.concatenate([kept_read[reader], origin[thing][:, None]], axis=1)
    weights = as_floats(game.demand)[reader, thing][:, None] * seconds
    rows, sources = reader.size, m * tiers + 1
    usable = np.isfinite(weights)
    objective = np.concatenate(
        [
            np.tile(as_floats(game.rent), m * objects),
            np.where(usable, weights, 0.0).reshape(-1),
        ]
    )
    upper = np.concatenate([np.ones(keepers), usable.astype(np.float64).reshape(-1)])
    constraints = [
        _every_demand_is_served(rows, sources, keepers),
        _only_from_holders(thing, rows, sources, (m, objects, tiers)),
        *_tier_limits(game, keepers + rows * sources),
    ]
    integrality = np.repeat(np.array([1, 0], dtype=np.int64), [keepers, rows * sources])
    found = milp(
        objective,
        constraints=constraints,
        bounds=Bounds(np.zeros(upper.size), upper),
        integrality=integrality,
        options={"time_limit": time_limit_s, "mip_rel_gap": 0.0},
    )
    if found.status != 0:
        raise GameError(
            f"got solver status {found.status} ({found.message}) for {m} workers × {objects} "
            "objects; expected a proven optimum. Use fewer objects or a longer time limit"
        )
    return _placement_of(found.x[:keepers], game)


def _every_demand_is_served(rows: int, sources: int, keepers: int) -> LinearConstraint:
    """Σ_source x = 1 for each demand."""
    row = np.repeat(np.arange(rows), sources)
    matrix = coo_array(
        (np.ones(row.size), (row, keepers + np.arange(row.size))),
        shape=(rows, keepers + rows * sources),
    )
    return LinearConstraint(matrix.tocsr(), 1.0, 1.0)


def _only_from_holders(
    thing: NDArray[np.intp], rows: int, sources: int, shape: tuple[int, int, int]
) -> LinearConstraint:
    """Couple x ≤ y: a demand is served from (j, t) only if j keeps the object in t."""
    m, objects, tiers = shape
    keepers, pairs = m * objects * tiers, rows * (sources - 1)
    line = np.arange(pairs)
    demand, source = line // (sources - 1), line % (sources - 1)
    holder = ((source // tiers) * objects + thing[demand]) * tiers + source % tiers
    served = keepers + demand * sources + source
    matrix = coo_array(
        (
            np.concatenate([np.ones(pairs), -np.ones(pairs)]),
            (np.concatenate([line, line]), np.concatenate([served, holder])),
        ),
        shape=(pairs, keepers + rows * sources),
    )
    return LinearConstraint(matrix.tocsr(), -np.inf, 0.0)


def _tier_limits(game: PlacementGame, columns: int) -> list[LinearConstraint]:
    """Σ_t y ≤ 1 for each worker and object, and Σ_o y ≤ room for each limited worker and tier."""
    m, objects, tiers = game.workers, game.objects, game.tiers
    keepers = m * objects * tiers
    limits: list[LinearConstraint] = []
    y = np.arange(keepers)
    if tiers > 1:
        once = coo_array((np.ones(keepers), (y // tiers, y)), shape=(m * objects, columns))
        limits.append(LinearConstraint(once.tocsr(), -np.inf, 1.0))
    if game.capacitated:
        line = (y // (objects * tiers)) * tiers + y % tiers
        fits = coo_array((np.ones(keepers), (line, y)), shape=(m * tiers, columns))
        limits.append(LinearConstraint(fits.tocsr(), -np.inf, game.room.reshape(-1)))
    return limits


def _placement_of(kept: Floats, game: PlacementGame) -> Placement:
    table = kept.reshape(game.workers, game.objects, game.tiers) > 0.5
    placement = empty_placement(game)
    for tier in range(game.tiers):
        placement[table[:, :, tier]] = tier + 1
    return placement
