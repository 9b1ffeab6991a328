"""Price of anarchy and price of stability, with how exactly each is known.

Where it stands: the answer of Γ_R, for small games by enumeration and for large ones by solver and
dynamics. A ratio found by dynamics is a *lower* bound on the price of anarchy, since a worse
equilibrium may exist. It is an upper bound on the price of stability. The report says whether its
ratios are exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from wardrop.games.ratio import cost_ratio
from wardrop.games.routing.equilibria import (
    best_response,
    enumerate_equilibria,
    greedy,
)
from wardrop.games.routing.game import FiniteGame, FrozenOverlapGame
from wardrop.games.routing.optimum import optimal_assignment, potential_minimiser, social_cost


@dataclass(frozen=True)
class AnarchyReport:
    """How much selfish routing loses.

    Attributes:
        optimum_cost: least social cost, seconds; exact.
        best_equilibrium_cost: least social cost of an equilibrium known, seconds; nan if none
            exists.
        worst_equilibrium_cost: greatest, seconds; nan if none exists.
        equilibria: how many pure equilibria are known.
        exact: all equilibria were enumerated; otherwise those found are a sample.
    """

    optimum_cost: float
    best_equilibrium_cost: float
    worst_equilibrium_cost: float
    equilibria: int
    exact: bool

    @property
    def price_of_anarchy(self) -> float:
        """Worst equilibrium ÷ optimum; a lower bound if not exact.

        `cost_ratio` defines it for an optimum of 0. Source: Koutsoupias and Papadimitriou 1999.
        """
        return cost_ratio(self.worst_equilibrium_cost, self.optimum_cost)

    @property
    def price_of_stability(self) -> float:
        """Best equilibrium ÷ optimum (Anshelevich et al. 2004); upper bound if not exact."""
        return cost_ratio(self.best_equilibrium_cost, self.optimum_cost)


def analyse(game: FiniteGame) -> AnarchyReport:
    """Exact report of a small game by enumeration.

    Raises:
        GameError: more profiles than `equilibria.ENUMERATION_LIMIT`.
    """
    found = enumerate_equilibria(game)
    costs = found.social_costs
    return AnarchyReport(
        optimum_cost=found.optimum_cost,
        best_equilibrium_cost=float(costs.min()) if costs.size else math.nan,
        worst_equilibrium_cost=float(costs.max()) if costs.size else math.nan,
        equilibria=int(costs.size),
        exact=True,
    )


def analyse_large(game: FrozenOverlapGame, seed: int, starts: int = 8) -> AnarchyReport:
    """Exact optimum against the equilibria that best response reaches.

    Starts: greedy in index order, the potential's minimum, and `starts` random profiles.

    Args:
        game: n·ℓ(n) convex; up to a few hundred requests.
        seed: of the random starts; same seed, same report.
        starts: random profiles to start from.
    """
    generator = np.random.default_rng(seed)
    profiles = [potential_minimiser(game).profile, best_response(game, greedy(game)).profile]
    for _ in range(starts):
        order = generator.permutation(game.players).astype(np.intp)
        rest = best_response(game, greedy(game, order))
        if rest.converged:
            profiles.append(rest.profile)
    costs = [social_cost(game, profile) for profile in profiles]
    return AnarchyReport(
        optimum_cost=optimal_assignment(game).social_cost,
        best_equilibrium_cost=min(costs),
        worst_equilibrium_cost=max(costs),
        equilibria=len({profile.tobytes() for profile in profiles}),
        exact=False,
    )
