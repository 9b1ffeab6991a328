"""Γ_KV as a game: workers choose what to keep and in which tier.

Where it stands: above `topology.py`, below everything that searches. The cost is

    C_i(S) = Σ_{o ∈ S_i} rent_t(i,o) + Σ_o w_io · access_io(S)
    access_io = min(own tier's read, min_{j: o ∈ S_j} d_ij + tier read at j, origin_o)

The game is the paper's [A] in the form of Chun et al. 2004 (uncapacitated: rent, no limit) and of
the capacitated selfish replication game (Gopalakrishnan et al. 2012: no rent, so many blocks a
worker). Tiers and the origin (G4, or recomputing) are our extension [O]. A placement is an integer
array (…, workers, objects): 0 = not kept, t = kept in `tiers[t − 1]`. Costs: seconds of delay per
second.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linear_sum_assignment

from wardrop.games.routing.latency import Floats, as_floats, require

Placement: TypeAlias = NDArray[np.int8]


@dataclass(frozen=True)
class PlacementGame:
    """The placement of objects on workers.

    Attributes:
        demand: (workers, objects) w_io, requests per second of worker i for object o, ≥ 0.
        distance: (workers, workers) d_ij, seconds to fetch one object from j; diagonal 0.
        rent: (tiers,) α, seconds per second for one object kept, ≥ 0.
        read: (tiers,) seconds to read one object back from the tier, ≥ 0.
        origin: (objects,) seconds where no worker keeps it (G4 or recompute); inf = some worker
            must.
        capacity: (workers, tiers) objects that fit; inf = no limit.
    """

    demand: ArrayLike
    distance: ArrayLike
    rent: ArrayLike = (0.0,)
    read: ArrayLike = (0.0,)
    origin: ArrayLike = np.inf
    capacity: ArrayLike = field(default=np.inf)

    def __post_init__(self) -> None:
        demand, distance = as_floats(self.demand), as_floats(self.distance)
        require(demand.ndim == 2, demand.shape, "demand of shape (workers, objects)")
        square = (demand.shape[0], demand.shape[0])
        require(distance.shape == square, distance.shape, f"distance of shape {square}")
        require(bool(np.all(demand >= 0)), demand.min(initial=0), "demand ≥ 0")
        require(bool(np.all(distance >= 0)), distance.min(initial=0), "distance ≥ 0")
        require(bool(np.all(np.diag(distance) == 0)), np.diag(distance), "distance 0 to oneself")
        tiers = (as_floats(self.rent).shape, as_floats(self.read).shape)
        require(
            tiers[0] == tiers[1] and len(tiers[0]) == 1, tiers, "one rent and one read per tier"
        )
        require(bool(np.all(as_floats(self.rent) >= 0)), self.rent, "rent ≥ 0")
        require(bool(np.all(as_floats(self.read) >= 0)), self.read, "read ≥ 0")

    @property
    def workers(self) -> int:
        """How many workers."""
        return as_floats(self.demand).shape[0]

    @property
    def objects(self) -> int:
        """How many objects."""
        return as_floats(self.demand).shape[1]

    @property
    def tiers(self) -> int:
        """How many tiers a worker has of its own."""
        return as_floats(self.rent).size

    @property
    def room(self) -> Floats:
        """(workers, tiers) objects that fit."""
        return np.broadcast_to(as_floats(self.capacity), (self.workers, self.tiers))

    @property
    def capacitated(self) -> bool:
        """Whether some tier can hold fewer than all objects."""
        return bool(np.any(self.room < self.objects))

    def _kept_read(self, placement: Placement) -> Floats:
        """Seconds to read at the holder itself, inf where not kept: same shape as the placement."""
        return np.concatenate([[np.inf], as_floats(self.read)])[placement]

    def access(self, placement: Placement) -> Floats:
        """Seconds for worker i to get object o: (…, workers, objects)."""
        kept = self._kept_read(placement)
        distance = as_floats(self.distance)
        best = np.broadcast_to(as_floats(self.origin), placement.shape).copy()
        for j in range(self.workers):
            np.minimum(best, kept[..., j : j + 1, :] + distance[:, j][:, None], out=best)
        return best

    def costs(self, placement: Placement) -> Floats:
        """C_i: (…, workers) seconds of delay per second; inf if a wanted object is nowhere."""
        rent = np.concatenate([[0.0], as_floats(self.rent)])[placement].sum(axis=-1)
        demand, access = as_floats(self.demand), self.access(placement)
        paid = np.where(demand > 0, demand * np.where(demand > 0, access, 0.0), 0.0)
        return rent + paid.sum(axis=-1)

    def social_cost(self, placement: Placement) -> float:
        """Σ_i C_i, seconds of delay per second."""
        return float(self.costs(placement).sum())

    def gains(self, placement: Placement, worker: int) -> Floats:
        """(objects, tiers) savings of the worker from object o in tier t, of any sign."""
        others = placement.copy()
        others[worker] = 0
        away = self.access(others)[worker]
        read = np.minimum(as_floats(self.read)[None, :], away[:, None])
        demand = as_floats(self.demand)[worker][:, None]
        with np.errstate(invalid="ignore"):
            saved = np.where(demand > 0, demand * (away[:, None] - read), 0.0)
        return saved - as_floats(self.rent)[None, :]

    def best_response(self, placement: Placement, worker: int) -> Placement:
        """The worker's cheapest row given the others: (objects,). Exact.

        Without limits, per object the tier that gains most; with limits, an assignment of objects
        to tier slots. Ties keep nothing.
        """
        gains = self.gains(placement, worker)
        room = np.minimum(self.room[worker], self.objects).astype(np.intp)
        row = np.zeros(self.objects, dtype=np.int8)
        if np.all(room >= self.objects):
            tier = gains.argmax(axis=1)
            keep = gains.max(axis=1) > 0
            row[keep] = tier[keep] + 1
            return row
        slots = np.repeat(np.arange(self.tiers), room)
        if slots.size == 0:
            return row
        values = np.where(np.isinf(gains), 1e12, np.maximum(gains, 0.0))[:, slots]
        chosen, slot = linear_sum_assignment(values, maximize=True)
        useful = gains[chosen, slots[slot]] > 0
        row[chosen[useful]] = slots[slot[useful]] + 1
        return row


def empty_placement(game: PlacementGame) -> Placement:
    """The placement without any object: (workers, objects) zeros."""
    return np.zeros((game.workers, game.objects), dtype=np.int8)
