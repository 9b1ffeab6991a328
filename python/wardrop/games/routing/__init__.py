"""Γ_R, the routing game: requests choose workers.

`docs/explanation/games/routing.md` explains the game.

* `latency`, `saturation`: families of delay against load.
* `game`: the finite games.
* `equilibria`, `potential`: where selfish requests come to rest, and why.
* `optimum`, `flow`: the exact optimum, dense for hundreds of requests and sparse for thousands.
* `nonatomic`: the continuum of requests, with tolls.
* `anarchy`, `bounds`: the price of anarchy, and its classical limits.
"""

from wardrop.games.routing.anarchy import AnarchyReport, analyse, analyse_large
from wardrop.games.routing.equilibria import (
    Dynamics,
    Equilibria,
    best_response,
    enumerate_equilibria,
    greedy,
)
from wardrop.games.routing.flow import FlowSolution, SparseGame, solve_flow
from wardrop.games.routing.game import EndogenousOverlapGame, FiniteGame, FrozenOverlapGame
from wardrop.games.routing.latency import MM1, Affine, Latency, Polynomial
from wardrop.games.routing.nonatomic import (
    Flow,
    NonatomicGame,
    equilibrium,
    optimum,
    pigou_tolls,
    price_of_anarchy,
)
from wardrop.games.routing.optimum import (
    Assignment,
    optimal_assignment,
    potential_minimiser,
    social_cost,
)
from wardrop.games.routing.potential import exact_potential, four_cycle_residual
from wardrop.games.routing.saturation import Marginal, Mixed, Saturating, Table

__all__ = [
    "MM1",
    "Affine",
    "AnarchyReport",
    "Assignment",
    "Dynamics",
    "EndogenousOverlapGame",
    "Equilibria",
    "FiniteGame",
    "Flow",
    "FlowSolution",
    "FrozenOverlapGame",
    "Latency",
    "Marginal",
    "Mixed",
    "NonatomicGame",
    "Polynomial",
    "Saturating",
    "SparseGame",
    "Table",
    "analyse",
    "analyse_large",
    "best_response",
    "enumerate_equilibria",
    "equilibrium",
    "exact_potential",
    "four_cycle_residual",
    "greedy",
    "optimal_assignment",
    "optimum",
    "pigou_tolls",
    "potential_minimiser",
    "price_of_anarchy",
    "social_cost",
    "solve_flow",
]
