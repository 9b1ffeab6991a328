"""Does a game have an exact potential? The Monderer-Shapley test, and the potential itself.

Where it stands: on `equilibria.cost_tensor`; small games only. Two players with two strategies each
form a 4-cycle of deviations. A finite game has an exact potential if and only if the deviators'
cost changes sum to zero around every 4-cycle. Source: Monderer and Shapley 1996, corollary 2.9. The
sum around a cycle is the mixed second difference of C_i − C_k, so the test is one tensor operation
per pair.
"""

from __future__ import annotations

import numpy as np

from wardrop.games.errors import NoPotentialError
from wardrop.games.routing.equilibria import cost_tensor
from wardrop.games.routing.game import FiniteGame
from wardrop.games.routing.latency import Floats


def four_cycle_residual(game: FiniteGame) -> float:
    """Largest |sum of the deviators' cost changes| over all 4-cycles, seconds; 0 iff a potential.

    Formula: max over i < k and cycles of |Δ_i Δ_k (C_i − C_k)|, Δ_p a difference in player p's
    choice.
    Complexity: O(players²·workers^(players + 2)). Source: Monderer and Shapley 1996.
    """
    tensor, worst = cost_tensor(game), 0.0
    for i in range(game.players):
        for k in range(i + 1, game.players):
            difference = np.moveaxis(tensor[i] - tensor[k], (i, k), (0, 1))
            base = difference - difference[:1] - difference[:, :1] + difference[:1, :1]
            flat = base.reshape(game.workers, game.workers, -1)
            for worker in range(game.workers):  # other corners than (0, 0): shift the base row
                shifted = flat - flat[worker : worker + 1]
                spread = shifted.max(axis=1) - shifted.min(axis=1)
                worst = max(worst, float(spread.max()))
    return worst


def exact_potential(game: FiniteGame, tolerance: float = 1e-9) -> Floats:
    """The exact potential with Φ(all on worker 0) = 0: (workers, …, workers), one axis a player.

    Built by summing, player after player, the mover's cost change on the way from the base profile:
    Φ(s) = Σ_i [C_i(s_1..s_i, 0..0) − C_i(s_1..s_{i−1}, 0, 0..0)].

    Raises:
        NoPotentialError: a 4-cycle fails to close by more than `tolerance` seconds.
    """
    residual = four_cycle_residual(game)
    if residual > tolerance:
        raise NoPotentialError(residual)
    tensor = cost_tensor(game)
    total = np.zeros(tensor.shape[1:])
    for i in range(game.players):
        later_at_base = tensor[i][
            (slice(None),) * (i + 1) + (slice(0, 1),) * (game.players - i - 1)
        ]
        total = total + later_at_base - np.take(later_at_base, [0], axis=i)
    return total
