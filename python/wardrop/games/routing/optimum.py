"""The social optimum of an atomic game with frozen overlap, exactly.

Where it stands: the dense solver, for up to a few hundred requests; `flow.py` is the sparse one for
thousands. Slot k of worker j is a column that costs the *marginal* k·ℓ_j(k) − (k−1)·ℓ_j(k−1). When
n·ℓ_j(n) is convex the marginals rise with k, so a cheapest assignment fills each worker from its
first slot. The cost of the assignment is then the social cost, and the optimum is one linear
assignment. With columns that cost ℓ_j(k), the same assignment minimises Rosenthal's potential, so
it is a Nash equilibrium.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from wardrop.games.errors import NotConvexError
from wardrop.games.routing.game import FrozenOverlapGame, Profiles, slot_delays, slot_marginals
from wardrop.games.routing.latency import Floats, as_floats


@dataclass(frozen=True)
class Assignment:
    """A profile and its cost.

    Attributes:
        profile: (players,) worker of each request.
        social_cost: Σ_i C_i at the profile, seconds, each request paying the congestion it meets.
    """

    profile: Profiles
    social_cost: float


def social_cost(game: FrozenOverlapGame, profile: Profiles) -> float:
    """Σ_i constants[i, s_i] + Σ_j n_j·ℓ_j(n_j), seconds. O(players + workers)."""
    own = as_floats(game.constants)[np.arange(game.players), profile].sum()
    loads = np.bincount(profile, minlength=game.workers).astype(np.float64)
    used = loads > 0
    delays = (game.latency(loads) * np.ones(game.workers))[used]
    return float(own + (loads[used] * delays).sum())


def check_convex(marginals: Floats) -> None:
    """Raise unless each worker's slot costs (slots, workers) never fall with the slot.

    Raises:
        NotConvexError: names the worker and slot.
    """
    finite = np.where(np.isfinite(marginals), marginals, np.finfo(np.float64).max)
    falls = np.diff(finite, axis=0) < -1e-12
    if falls.any():
        slot, worker = (int(index) for index in np.argwhere(falls)[0])
        raise NotConvexError(
            f"got worker {worker} whose slot {slot + 2} costs {marginals[slot + 1, worker]:.6g} s, "
            f"less than slot {slot + 1}'s {marginals[slot, worker]:.6g} s; expected n·ℓ(n) convex. "
            "Take the convex hull of the measurements, or enumerate (enumerate_equilibria)"
        )


def optimal_assignment(game: FrozenOverlapGame) -> Assignment:
    """The exact social optimum, by slot expansion and linear assignment.

    Complexity: O(players²·slots) time, players × (workers·slots) floats of memory, where slots is
    the
    most requests any worker could hold in an optimum (at most players).

    Raises:
        NotConvexError: n·ℓ_j(n) is not convex for some worker.

    Source: standard (convex-cost flow, e.g. Ahuja, Magnanti and Orlin 1993, ch. 14).
    """
    marginals = slot_marginals(game.latency, game.workers, game.players)
    check_convex(marginals)
    profile = _assign(game, marginals)
    return Assignment(profile, social_cost(game, profile))


def potential_minimiser(game: FrozenOverlapGame) -> Assignment:
    """A pure Nash equilibrium: the exact minimum of Rosenthal's potential. Same complexity.

    Source: Rosenthal 1973 (a minimum of an exact potential is an equilibrium); by assignment,
    standard.
    """
    profile = _assign(game, slot_delays(game.latency, game.workers, game.players))
    return Assignment(profile, social_cost(game, profile))


def _assign(game: FrozenOverlapGame, slot_costs: Floats) -> Profiles:
    columns, m = (
        slot_costs.T.reshape(-1),
        game.workers,
    )  # worker-major: column // players is the worker
    owner = np.repeat(np.arange(m), slot_costs.shape[0])
    usable = np.isfinite(columns)
    matrix = as_floats(game.constants)[:, owner[usable]] + columns[usable]
    _, chosen = linear_sum_assignment(matrix)
    return owner[usable][chosen].astype(np.intp)
