"""Adding a cache can hurt: an instance found by search, not quoted.

Where it stands: on `equilibria.py`. Ma, Yeh and Huang (MobiHoc 2019) showed that giving a node a
cache can worsen selfish caching, Braess's paradox for caches. The search enumerates small random
fleets twice, with and without one worker's cache. It ends when *every* equilibrium with the cache
costs more than *every* equilibrium without it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from wardrop.games.caching.equilibria import PlacementReport, analyse_placement
from wardrop.games.caching.game import PlacementGame
from wardrop.games.errors import GameError


@dataclass(frozen=True)
class Paradox:
    """A fleet that is better without one of its caches.

    Attributes:
        seed: that made the instance.
        without: the game in which worker 0 has no room.
        added: the same with room for one object there.
        before: exact report without the cache.
        after: exact report with it; its *best* equilibrium is dearer than the *worst* of `before`.
    """

    seed: int
    without: PlacementGame
    added: PlacementGame
    before: PlacementReport
    after: PlacementReport

    @property
    def harm(self) -> float:
        """Best equilibrium after ÷ worst before, > 1."""
        return self.after.best_equilibrium_cost / self.before.worst_equilibrium_cost


def random_pair(
    seed: int, workers: int = 3, objects: int = 3
) -> tuple[PlacementGame, PlacementGame]:
    """A random fleet on a line, room for one object each: without and with worker 0's cache."""
    generator = np.random.default_rng(seed)
    place = generator.integers(0, 5, workers).astype(np.float64)
    distance = np.abs(place[:, None] - place[None, :]) + 1.0 - np.eye(workers)
    wanted = generator.integers(0, 6, (workers, objects))
    demand = (wanted * (generator.random((workers, objects)) < 0.6)).astype(np.float64)
    room = np.ones((workers, 1))
    added = PlacementGame(demand, distance, origin=8.0, capacity=room)
    closed = room.copy()
    closed[0] = 0.0
    return replace(added, capacity=closed), added


def find_paradox(tries: int = 5_000, workers: int = 3, objects: int = 3) -> Paradox:
    """The first seed whose fleet is worse off with the cache, whichever equilibrium is reached.

    Raises:
        GameError: none found in `tries` seeds.
    """
    for seed in range(tries):
        without, added = random_pair(seed, workers, objects)
        before, after = analyse_placement(without), analyse_placement(added)
        if before.equilibria and after.equilibria and before.optimum_cost > 0:
            found = Paradox(seed, without, added, before, after)
            if found.harm > 1.0 + 1e-9:
                return found
    raise GameError(f"got no paradox in {tries} seeds; expected one. Raise `tries`")
