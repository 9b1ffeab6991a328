"""Random instances of the routing game, for the command, the docs and the tests.

Where it stands: beside `game.py`. Seeded; same seed, same instance. Magnitudes are those of a
fleet: prefill up to half a second, tens of milliseconds for each request already there. Ours [O].
"""

from __future__ import annotations

import numpy as np

from wardrop.games.routing.flow import SparseGame
from wardrop.games.routing.game import EndogenousOverlapGame, FrozenOverlapGame, SharingRule
from wardrop.games.routing.latency import Affine


def random_frozen(seed: int, requests: int, workers: int) -> FrozenOverlapGame:
    """Uncached prefill of 0 to 0.5 s per request and worker; affine delays of unlike workers."""
    generator = np.random.default_rng(seed)
    constants = generator.uniform(0.0, 0.5, (requests, workers))
    base = generator.uniform(0.01, 0.05, workers)
    return FrozenOverlapGame(constants, Affine(base, generator.uniform(0.01, 0.2, workers)))


def random_endogenous(
    seed: int, requests: int, workers: int, rule: SharingRule = "max"
) -> EndogenousOverlapGame:
    """A symmetric random sharing matrix of 0 to 0.5 s over affine delays of unlike workers."""
    generator = np.random.default_rng(seed)
    raw = generator.uniform(0.0, 0.5, (requests, requests))
    shared = np.triu(raw, 1) + np.triu(raw, 1).T
    constants = 0.5 + generator.uniform(0.0, 0.1, (requests, workers))
    latency = Affine(0.0, generator.uniform(0.05, 0.25, workers))
    return EndogenousOverlapGame(constants, shared, latency, rule)


def random_sparse(seed: int, requests: int, workers: int, holders: int = 8) -> SparseGame:
    """Each request has its prefix on up to `holders` workers, hot ones more often (square law)."""
    generator = np.random.default_rng(seed)
    base = generator.uniform(0.05, 0.5, requests)
    spread = (workers * generator.random((requests, holders)) ** 2).astype(np.intp)
    pairs = np.unique(np.arange(requests)[:, None] * workers + spread)
    request, worker = pairs // workers, pairs % workers
    saving = generator.uniform(0.0, 1.0, pairs.size) * base[request]
    delay = generator.uniform(0.01, 0.02, workers)
    latency = Affine(delay, generator.uniform(0.005, 0.02, workers))
    return SparseGame(base, request.astype(np.intp), worker.astype(np.intp), saving, latency)
