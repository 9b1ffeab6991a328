"""Γ_R as finite games: requests choose workers.

Where it stands: above `latency.py`, below everything that searches for equilibria. A profile is an
integer array (…, players) of worker indices; costs are seconds.

Two games, which differ in the overlap:

* `FrozenOverlapGame`: the overlap is what the caches hold at decision time. A request's cost is a
  constant of its own plus a delay that counts heads: a congestion game with player-specific
  constants.
* `EndogenousOverlapGame`: a request also shares the prefix of whoever is on the worker now, so it
  matters *who* is there: the paper's positive externality [A].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wardrop.games.routing.latency import Floats, Latency, as_floats, require

Profiles: TypeAlias = NDArray[np.intp]
SharingRule: TypeAlias = Literal["max", "earlier", "sum"]


class FiniteGame(Protocol):
    """A game in which each player picks one of `workers`; lower cost is better."""

    @property
    def players(self) -> int:
        """How many requests choose."""
        ...

    @property
    def workers(self) -> int:
        """How many workers each may choose."""
        ...

    def costs(self, profiles: Profiles) -> Floats:
        """Cost of every player in every profile: (…, players) → (…, players), seconds."""
        ...


def loads_of(profiles: Profiles, workers: int) -> Floats:
    """Requests on each worker: (…, players) → (…, workers)."""
    return (profiles[..., :, None] == np.arange(workers)).sum(axis=-2).astype(np.float64)


@dataclass(frozen=True)
class FrozenOverlapGame:
    """C_i(s) = constants[i, s_i] + ℓ_{s_i}(n_{s_i}), overlap frozen at decision time.

    Source: the game is the paper's [A]; constants in seconds of prefill still to compute are ours
    (the
    paper subtracts ω·overlap). With constants ≥ 0, costs are positive and a ratio of costs means
    something. Each constant is a private resource of constant latency, so every classical bound for
    congestion games applies.

    Attributes:
        constants: (players, workers) seconds ≥ 0: uncached prefill, transfer, anything of its own.
        latency: the workers' delay against requests in flight.
    """

    constants: ArrayLike
    latency: Latency

    def __post_init__(self) -> None:
        table = as_floats(self.constants)
        require(table.ndim == 2, table.shape, "constants of shape (players, workers)")
        require(
            bool(np.all(table >= 0) and np.all(np.isfinite(table))),
            f"constants from {table.min():.6g} to {table.max():.6g}" if table.size else "none",
            "finite seconds ≥ 0; give uncached prefill seconds, not minus the seconds saved",
        )
        fits = self.latency.workers in (1, table.shape[1])
        require(fits, f"{self.latency.workers} latencies", f"1 or {table.shape[1]}, one per worker")
        room = np.broadcast_to(np.ceil(self.latency.capacity - 1), (table.shape[1],)).sum()
        require(
            bool(room >= table.shape[0]),
            f"{table.shape[0]} requests on workers that hold {room:g} in flight",
            "room for every request; add workers or raise their capacity",
        )

    @property
    def players(self) -> int:
        """How many requests choose."""
        return as_floats(self.constants).shape[0]

    @property
    def workers(self) -> int:
        """How many workers each may choose."""
        return as_floats(self.constants).shape[1]

    def costs(self, profiles: Profiles) -> Floats:
        """C_i for every player of every profile: (…, players) seconds."""
        delays = delay_at(self.latency, loads_of(profiles, self.workers))
        own = as_floats(self.constants)[np.arange(self.players), profiles]
        return own + np.take_along_axis(delays, profiles, axis=-1)

    def potential(self, profiles: Profiles) -> Floats:
        """Φ(s) = Σ_j Σ_{k ≤ n_j} ℓ_j(k) + Σ_i constants[i, s_i], seconds; one per profile.

        An exact potential: a deviation changes Φ by what it changes the deviator's own cost.
        Source: Rosenthal 1973; with player-specific constants, Mavronicolas et al. 2007; for this
        game
        the project's design notes [O].
        """
        loads = loads_of(profiles, self.workers)
        steps = slot_delays(self.latency, self.workers, self.players)
        areas = np.concatenate([np.zeros((1, self.workers)), np.cumsum(steps, axis=0)])
        congestion = areas[loads.astype(np.intp), np.arange(self.workers)].sum(axis=-1)
        own = as_floats(self.constants)[np.arange(self.players), profiles]
        return congestion + own.sum(axis=-1)


@dataclass(frozen=True)
class EndogenousOverlapGame:
    """C_i(s) = constants[i, s_i] + ℓ(n) − share_i(s), overlap with the requests on the same worker.

    share_i is, over the others k with s_k = s_i,
      'max':     max_k shared[i, k]        the longest prefix held: what a cache really gives;
      'earlier': max_{k < i} shared[i, k]  only the later request gains; 'sum':     Σ_k shared[i, k]
      pairwise, symmetric: kept as the contrast, it *has* a potential.
    Source: the externality is the paper's [A]; these closed forms are ours [O]. 'max' and 'earlier'
    have
    no exact potential and can have no pure equilibrium (a test shows both).

    Attributes:
        constants: (players, workers) seconds ≥ 0 with no sharing.
        shared: (players, players) seconds saved when i finds k's prefix; symmetric, diagonal
            ignored.
        latency: the workers' delay against requests in flight.
        rule: how overlaps with several requests combine.
    """

    constants: ArrayLike
    shared: ArrayLike
    latency: Latency
    rule: SharingRule = "max"

    def __post_init__(self) -> None:
        table, shared = as_floats(self.constants), as_floats(self.shared)
        require(table.ndim == 2, table.shape, "constants of shape (players, workers)")
        square = (table.shape[0], table.shape[0])
        require(shared.shape == square, shared.shape, f"shared of shape {square}")
        require(
            bool(np.allclose(shared, shared.T)), "an unsymmetric shared", "shared[i,k]=shared[k,i]"
        )
        require(bool(np.all(shared >= 0)), shared.min(), "shared ≥ 0 seconds")
        require(self.rule in ("max", "earlier", "sum"), self.rule, "'max', 'earlier' or 'sum'")

    @property
    def players(self) -> int:
        """How many requests choose."""
        return as_floats(self.constants).shape[0]

    @property
    def workers(self) -> int:
        """How many workers each may choose."""
        return as_floats(self.constants).shape[1]

    def costs(self, profiles: Profiles) -> Floats:
        """C_i for every player of every profile: (…, players) s. Memory: players² a profile."""
        delays = delay_at(self.latency, loads_of(profiles, self.workers))
        own = as_floats(self.constants)[np.arange(self.players), profiles]
        together = profiles[..., :, None] == profiles[..., None, :]
        allowed = ~np.eye(self.players, dtype=bool)
        if self.rule == "earlier":
            allowed = np.tril(allowed)
        found = np.where(together & allowed, as_floats(self.shared), 0.0)
        share = found.sum(axis=-1) if self.rule == "sum" else found.max(axis=-1)
        return own + np.take_along_axis(delays, profiles, axis=-1) - share


def delay_at(latency: Latency, loads: Floats) -> Floats:
    """ℓ_j at integer loads (…, workers); an empty worker's delay is never charged."""
    return latency(loads)


def slot_delays(latency: Latency, workers: int, slots: int) -> Floats:
    """ℓ_j(k) for k = 1..slots: (slots, workers) seconds, inf past a worker's capacity."""
    k = np.arange(1, slots + 1, dtype=np.float64)[:, None]
    return np.broadcast_to(latency(k * np.ones(workers)), (slots, workers))


def slot_marginals(latency: Latency, workers: int, slots: int) -> Floats:
    """k·ℓ_j(k) − (k−1)·ℓ_j(k−1): social cost of the k-th request, (slots, workers) seconds."""
    k = np.arange(1, slots + 1, dtype=np.float64)[:, None]
    total = k * slot_delays(latency, workers, slots)
    before = np.concatenate([np.zeros((1, workers)), total[:-1]])
    with np.errstate(invalid="ignore"):
        return np.where(np.isfinite(total), total - before, np.inf)
