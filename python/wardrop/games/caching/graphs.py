"""Graphs with a known price of anarchy, and their bounds.

Where it stands: beside `game.py`, for reference games. `basic_game` is the basic game of Chun,
Chaudhuri, Wee, Barreno, Papadimitriou and Kubiatowicz (PODC 2004): one object, unit demand, one
rent α, unit edges, some worker must keep it. The paper maps the complete graph to NVLink in a node
and sparse graphs to a fleet across nodes [R]; its hierarchical bound is only a conjecture [R] and
is not here.
"""

from __future__ import annotations

import math

import numpy as np

from wardrop.games.caching.game import PlacementGame
from wardrop.games.errors import GameError
from wardrop.games.routing.latency import Floats


def complete_graph(n: int) -> Floats:
    """Distance 1 between any two of n workers."""
    return np.ones((n, n)) - np.eye(n)


def star_graph(n: int) -> Floats:
    """Worker 0 at the centre: 1 to it, 2 between leaves."""
    distance = 2.0 * complete_graph(n)
    distance[0, 1:] = distance[1:, 0] = 1.0
    return distance


def line_graph(n: int) -> Floats:
    """|i − j| between workers i and j of a line."""
    place = np.arange(n, dtype=np.float64)
    return np.abs(place[:, None] - place[None, :])


def basic_game(distance: Floats, alpha: float) -> PlacementGame:
    """One object that each worker wants once per second; some worker must keep it.

    Args:
        distance: (workers, workers) seconds to fetch the object from another worker; diagonal 0.
        alpha: rent α of one copy, seconds per second, above 0.

    Raises:
        GameError: α is 0 or below.
    """
    if alpha <= 0:
        raise GameError(f"got rent α = {alpha:g}; expected > 0, or every worker keeps everything")
    return PlacementGame(np.ones((distance.shape[0], 1)), distance, rent=(alpha,))


def complete_bound() -> float:
    """1. Source: Chun et al. 2004."""
    return 1.0


def star_bound() -> float:
    """2. Source: Chun et al. 2004."""
    return 2.0


def line_bound(n: int) -> float:
    """1 + √n/2. The order O(√n) is Chun et al. 2004; the constant is ours [O].

    Sketch: at an equilibrium every worker is within α of a replica, and replicas are at least α
    apart. So its cost is at most n(1 + α/2) for α < n, and α + n²/2 otherwise. In the optimum, r
    evenly spaced replicas cost about r·α + n²/4r ≥ n√α. A test enumerates n ≤ 11 over a grid of α.
    """
    return 1.0 + 0.5 * math.sqrt(n)


def binary_capacitated_bound() -> float:
    """3 for capacitated selfish replication, binary preferences. Source: Etesami, Başar 2017."""
    return 3.0
