"""Pure Nash equilibria: all of them when the game is small, one by best response when it is large.

Where it stands: on `game.py`. Enumeration is exact and costs players·workers^players cost
evaluations; `ENUMERATION_LIMIT` profiles is where it refuses. Dynamics are exact about what they
return (a profile from which no player gains more than `tolerance`), and say so when they have found
none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardrop.games.errors import GameError
from wardrop.games.routing.game import FiniteGame, FrozenOverlapGame, Profiles
from wardrop.games.routing.latency import Floats, as_floats

ENUMERATION_LIMIT = 2_000_000  # profiles; 2M × 8 players × 8 bytes = 128 MB per cost tensor
TOLERANCE = 1e-12  # seconds; a gain below this is not a reason to move


def all_profiles(players: int, workers: int) -> Profiles:
    """Every profile, (workers^players, players), the last player varying fastest.

    Raises:
        GameError: more than `ENUMERATION_LIMIT` profiles.
    """
    count = workers**players
    if count > ENUMERATION_LIMIT:
        raise GameError(
            f"got {workers}^{players} = {count} profiles; expected at most {ENUMERATION_LIMIT}. "
            "Use best_response and the exact optimum instead of enumeration"
        )
    grid = np.indices((workers,) * players).reshape(players, count)
    return grid.T.astype(np.intp)


def cost_tensor(game: FiniteGame) -> Floats:
    """Costs of every profile: (players, workers, …, workers), one axis a player. Exact."""
    profiles = all_profiles(game.players, game.workers)
    shape = (game.players,) + (game.workers,) * game.players
    return game.costs(profiles).T.reshape(shape)


@dataclass(frozen=True)
class Equilibria:
    """All pure equilibria of an enumerated game.

    Attributes:
        profiles: (found, players) equilibria, possibly none.
        social_costs: (found,) Σ_i C_i, seconds.
        optimum: a profile of least social cost, (players,).
        optimum_cost: its social cost, seconds.
    """

    profiles: Profiles
    social_costs: Floats
    optimum: Profiles
    optimum_cost: float


def enumerate_equilibria(game: FiniteGame, tolerance: float = TOLERANCE) -> Equilibria:
    """All pure Nash equilibria and the exact optimum, by checking every profile and deviation.

    Args:
        game: at most `ENUMERATION_LIMIT` profiles.
        tolerance: seconds; a profile is stable if no player gains more than this.

    Source: the definition (Nash 1950). Error: none beyond floating point.
    """
    tensor = cost_tensor(game)
    stable = np.ones(tensor.shape[1:], dtype=bool)
    for i in range(game.players):
        stable &= tensor[i] <= tensor[i].min(axis=i, keepdims=True) + tolerance
    social = tensor.sum(axis=0)
    best = np.unravel_index(int(np.argmin(social)), social.shape)
    return Equilibria(
        profiles=np.argwhere(stable).astype(np.intp),
        social_costs=social[stable],
        optimum=np.array(best, dtype=np.intp),
        optimum_cost=float(social[best]),
    )


@dataclass(frozen=True)
class Dynamics:
    """Where best response came to rest, or that it did not.

    Attributes:
        profile: (players,) the last profile.
        converged: no player gains more than the tolerance there.
        rounds: passes over all players.
        moves: single deviations made.
        cycled: a whole profile came back, so the dynamics would never rest.
    """

    profile: Profiles
    converged: bool
    rounds: int
    moves: int
    cycled: bool


def deviation_costs(game: FiniteGame, profile: Profiles, player: int) -> Floats:
    """Cost of one player on each worker, the others fixed: (workers,) seconds."""
    options = np.repeat(profile[None, :], game.workers, axis=0)
    options[:, player] = np.arange(game.workers)
    return game.costs(options)[:, player]


def best_response(game: FiniteGame, start: Profiles, rounds: int = 1_000) -> Dynamics:
    """Players in turn move to their cheapest worker until no player gains.

    Converges for every game with an exact potential (Monderer and Shapley 1996); for others it may
    cycle, which is detected by a profile that comes back at the end of a pass.

    Args:
        game: any finite game; `FrozenOverlapGame` takes a fast path, O(workers) a player.
        start: (players,) profile to start from.
        rounds: passes over all players before giving up.
    """
    if isinstance(game, FrozenOverlapGame):
        return _best_response_frozen(game, start, rounds)
    profile, moves = start.copy(), 0
    seen = {profile.tobytes()}
    for turn in range(1, rounds + 1):
        moved = 0
        for player in range(game.players):
            options = deviation_costs(game, profile, player)
            target = int(np.argmin(options))
            if options[target] < options[profile[player]] - TOLERANCE:
                profile[player] = target
                moved += 1
        moves += moved
        if moved == 0:
            return Dynamics(profile, True, turn, moves, False)
        if profile.tobytes() in seen:
            return Dynamics(profile, False, turn, moves, True)
        seen.add(profile.tobytes())
    return Dynamics(profile, False, rounds, moves, False)


def _best_response_frozen(game: FrozenOverlapGame, start: Profiles, rounds: int) -> Dynamics:
    constants, latency, m = as_floats(game.constants), game.latency, game.workers
    profile, moves = start.copy(), 0
    loads = np.bincount(profile, minlength=m).astype(np.float64)
    here, joining = latency(loads) * np.ones(m), latency(loads + 1.0) * np.ones(m)
    for turn in range(1, rounds + 1):
        moved = 0
        for player in range(game.players):
            old = int(profile[player])
            options = constants[player] + joining
            options[old] = constants[player, old] + here[old]
            new = int(np.argmin(options))
            if options[new] < options[old] - TOLERANCE:
                loads[old] -= 1.0
                loads[new] += 1.0
                here, joining = latency(loads) * np.ones(m), latency(loads + 1.0) * np.ones(m)
                profile[player] = new
                moved += 1
        moves += moved
        if moved == 0:
            return Dynamics(profile, True, turn, moves, False)
    return Dynamics(profile, False, rounds, moves, False)


def greedy(game: FrozenOverlapGame, order: Profiles | None = None) -> Profiles:
    """Requests arrive one by one and take the cheapest worker then: sequential greedy routing.

    This is what a router without foresight does, and one pass of best-response dynamics from an
    empty fleet [R: "greedy sequential routing is best-response dynamics"]. On identical, cache-free
    workers it is optimal.

    Args:
        game: overlap frozen.
        order: arrival order, a permutation of the players; by index when None.
    """
    constants, m = as_floats(game.constants), game.workers
    profile = np.zeros(game.players, dtype=np.intp)
    loads = np.zeros(m)
    joining = game.latency(loads + 1.0) * np.ones(m)
    for player in range(game.players) if order is None else order.tolist():
        chosen = int(np.argmin(constants[player] + joining))
        profile[player] = chosen
        loads[chosen] += 1.0
        joining = game.latency(loads + 1.0) * np.ones(m)
    return profile
