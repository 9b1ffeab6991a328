"""The routing optimum for thousands of workers: a sparse min-cost flow with a certificate.

Where it stands: beside `optimum.py`, for games whose overlap is sparse. A prefix lives on a few
workers, so a request costs its full prefill (`base`) anywhere except on those few. One hub node
carries "anywhere":

    request ──base──▶ hub ──0──▶ worker ──slot cost──▶ done
    request ──base − saving──▶ worker

That is requests·holders + 2·workers + Σ slots arcs instead of requests·workers·slots. The
constraint matrix is a network's, so the linear programme has an integral optimum (total
unimodularity); HiGHS finds it. Slots are generated only as deep as the prices ask for. Nothing is
taken on trust: `gap_seconds` is the distance to a Lagrangian bound computed here from the returned
prices, valid for *any* prices.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_array

from wardrop.games.errors import GameError
from wardrop.games.routing.game import Profiles, slot_delays, slot_marginals
from wardrop.games.routing.latency import Floats, Latency, require
from wardrop.games.routing.optimum import check_convex

_SPARE_SLOTS = 4  # above the mean load; deeper ones are added where a price asks for them


@dataclass(frozen=True)
class SparseGame:
    """A frozen-overlap game stored by its overlaps.

    constants[i, j] = base[i] − saving of the pair if listed, else base[i].

    Attributes:
        base: (players,) seconds with no overlap, ≥ 0.
        request: (pairs,) request of each overlap.
        worker: (pairs,) worker of each overlap; a pair is listed once.
        saving: (pairs,) seconds saved there, 0 ≤ saving ≤ base.
        latency: the workers' delay against requests in flight; `latency.workers` is the fleet.
    """

    base: Floats
    request: NDArray[np.intp]
    worker: NDArray[np.intp]
    saving: Floats
    latency: Latency

    def __post_init__(self) -> None:
        same = self.request.shape == self.worker.shape == self.saving.shape
        require(same, (self.request.shape, self.worker.shape, self.saving.shape), "equal lengths")
        require(bool(np.all(self.base >= 0)), self.base.min(initial=0.0), "base ≥ 0 seconds")
        inside = (self.saving >= 0) & (self.saving <= self.base[self.request] + 1e-12)
        require(bool(inside.all()), "a saving outside", "0 ≤ saving ≤ the request's base")
        require(
            bool(self.worker.size == 0 or self.worker.max() < self.workers),
            f"worker {self.worker.max(initial=0)}",
            f"workers below {self.workers}",
        )

    @property
    def players(self) -> int:
        """How many requests."""
        return self.base.size

    @property
    def workers(self) -> int:
        """How many workers."""
        return self.latency.workers

    def social_cost(self, profile: Profiles) -> float:
        """Σ_i constants[i, s_i] + Σ_j n_j·ℓ_j(n_j), seconds. O(players + pairs + workers)."""
        loads = np.bincount(profile, minlength=self.workers).astype(np.float64)
        used = loads > 0
        hit = profile[self.request] == self.worker
        own = self.base.sum() - self.saving[hit].sum()
        return float(own + (loads * self.latency(loads))[used].sum())


@dataclass(frozen=True)
class FlowSolution:
    """An exact optimum with its proof.

    Attributes:
        profile: (players,) worker of each request.
        objective: social cost, or the potential when that was minimised, seconds.
        bound: Lagrangian lower bound from `prices`, seconds.
        prices: (workers,) seconds that one more request on the worker costs everyone: the toll.
    """

    profile: Profiles
    objective: float
    bound: float
    prices: Floats

    @property
    def gap_seconds(self) -> float:
        """Objective − bound: 0 up to floating point when the profile is optimal."""
        return self.objective - self.bound


def solve_flow(game: SparseGame, goal: Literal["social", "potential"] = "social") -> FlowSolution:
    """Exact optimum ('social') or a pure Nash equilibrium ('potential') of a large sparse game.

    Measured: 4,096 workers × 10,000 requests × 8 overlaps each in seconds on one core;
    docs/explanation/games/routing.md
    states time and memory. Error: `gap_seconds`, checked to be below 1e-6 of the objective.

    Raises:
        NotConvexError: the slot costs of some worker fall.
        GameError: the requests do not fit, or the solver did not prove its answer.
    """
    table = slot_marginals if goal == "social" else slot_delays
    m, mean = game.workers, -(-game.players // game.workers)
    depth = np.full(m, min(game.players, mean + _SPARE_SLOTS), dtype=np.intp)
    while True:
        costs = table(game.latency, m, int(depth.max()) + 1)
        check_convex(costs)
        usable = np.minimum(depth, np.isfinite(costs).sum(axis=0))
        beyond = np.take_along_axis(costs, depth[None, :], axis=0)[0]
        if int(usable.sum()) < game.players:
            short = np.isfinite(beyond)
            _require_room(game, usable, short)
        else:
            profile, prices = _solve(game, costs, usable)
            short = (prices > beyond + 1e-12) & (depth < game.players)
            if not short.any():
                return _certify(game, profile, prices, costs)
        depth = np.where(short, np.minimum(2 * depth, game.players), depth)


def _require_room(game: SparseGame, usable: NDArray[np.intp], more: NDArray[np.bool_]) -> None:
    if not more.any():
        raise GameError(
            f"got {game.players} requests; expected at most {int(usable.sum())}, the sum of the "
            "in-flight limits. Add workers or raise their capacity"
        )


def _solve(game: SparseGame, costs: Floats, depth: NDArray[np.intp]) -> tuple[Profiles, Floats]:
    """One linear programme over pairs, hub arcs, slots and hub-to-worker flows."""
    n, m, pairs = game.players, game.workers, game.request.size
    slot_worker = np.repeat(np.arange(m), depth)
    slot_index = np.arange(slot_worker.size) - np.repeat(np.cumsum(depth) - depth, depth)
    slots = slot_worker.size
    at_hub, at_slot, at_drop = pairs, pairs + n, pairs + n + slots
    columns = at_drop + m
    objective = np.zeros(columns)
    objective[:pairs] = game.base[game.request] - game.saving
    objective[at_hub:at_slot] = game.base
    objective[at_slot:at_drop] = costs[slot_index, slot_worker]
    rows = [game.request, np.arange(n), n + game.worker, n + np.arange(m), n + slot_worker]
    rows += [np.full(n, n + m), np.full(m, n + m)]
    cols = [np.arange(pairs), at_hub + np.arange(n), np.arange(pairs), at_drop + np.arange(m)]
    cols += [at_slot + np.arange(slots), at_hub + np.arange(n), at_drop + np.arange(m)]
    signs = (1.0, 1.0, 1.0, 1.0, -1.0, 1.0, -1.0)
    values = [np.full(row.size, sign) for row, sign in zip(rows, signs, strict=True)]
    matrix = coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))),
        shape=(n + m + 1, columns),
    ).tocsr()
    upper = np.full(columns, np.inf)
    upper[at_slot:at_drop] = 1.0
    right = np.concatenate([np.ones(n), np.zeros(m + 1)])
    bounds = np.stack([np.zeros(columns), upper], axis=1)
    found: Any = linprog(  # scipy's stubs know no sparse A_eq and no array of bounds
        objective,
        A_eq=cast("Any", matrix),
        b_eq=right,
        bounds=cast("Any", bounds),
        method="highs-ds",
    )
    if found.status != 0:
        raise GameError(f"got solver status {found.status}: {found.message}; expected an optimum")
    solution, duals = np.asarray(found.x), np.asarray(found.eqlin.marginals)
    profile = _profile_of(game, solution[:pairs], solution[at_drop:])
    return profile, -duals[n : n + m].astype(np.float64)


def _profile_of(game: SparseGame, on_pair: Floats, from_hub: Floats) -> Profiles:
    profile = np.full(game.players, -1, dtype=np.intp)
    chosen = on_pair > 0.5
    profile[game.request[chosen]] = game.worker[chosen]
    anywhere = np.flatnonzero(profile < 0)
    profile[anywhere] = np.repeat(np.arange(game.workers), np.rint(from_hub).astype(np.intp))
    return profile


def _certify(game: SparseGame, profile: Profiles, prices: Floats, costs: Floats) -> FlowSolution:
    """Lagrangian bound: Σ_i min_j (constants_ij + p_j) − Σ_j Σ_k max(0, p_j − slot cost_jk)."""
    cheapest = game.base + prices.min()
    np.minimum.at(
        cheapest, game.request, game.base[game.request] - game.saving + prices[game.worker]
    )
    bound = float(cheapest.sum() - np.maximum(prices - costs, 0.0).sum())
    loads: NDArray[np.intp] = np.bincount(profile, minlength=game.workers)
    hit = profile[game.request] == game.worker
    slot = np.arange(costs.shape[0], dtype=np.intp)
    filled = np.less(slot[:, None], loads[None, :])
    objective = float(game.base.sum() - game.saving[hit].sum() + costs[filled].sum())
    solution = FlowSolution(profile, objective, bound, prices)
    if solution.gap_seconds > 1e-6 * max(objective, 1.0):
        raise GameError(
            f"got an optimum {solution.gap_seconds:.3g} s above its own lower bound; expected 0. "
            "Scale the delays so that they lie between 1e-3 and 1e3 s"
        )
    return solution
