"""How much of each prefix a worker's LRU cache holds under given flows: Che's approximation.

Where it stands: the Γ_KV end of the loop. Source: Che, Tung and Wang 2002 (the characteristic time
of an LRU cache), with unshared tokens as traffic that is never hit again [O].
"""

from __future__ import annotations

import numpy as np

from wardrop.games.routing.latency import Floats, require

_BISECTIONS = 60


def characteristic_time_s(
    flows: Floats, prefix_tokens: Floats, private_tps: Floats, capacity_tokens: float
) -> Floats:
    """T_j with Σ_r prefix_r·(1 − e^(−f_rj·T_j)) + private_j·T_j = capacity: (workers,) seconds.

    Args:
        flows: (families, workers) requests per second.
        prefix_tokens: (families,) tokens of each shared prefix.
        private_tps: (workers,) unshared tokens per second that pass through the cache.
        capacity_tokens: tokens a worker's cache holds.

    Returns:
        T_j, capped at one day where everything fits. Error: below 1e-12 of the cap.
    """
    require(capacity_tokens > 0, capacity_tokens, "capacity > 0 tokens")
    low, high = np.zeros(flows.shape[1]), np.full(flows.shape[1], 86_400.0)
    for _ in range(_BISECTIONS):
        middle = 0.5 * (low + high)
        held = (prefix_tokens[:, None] * (1.0 - np.exp(-flows * middle))).sum(axis=0)
        full = held + private_tps * middle >= capacity_tokens
        low, high = np.where(full, low, middle), np.where(full, middle, high)
    return low


def steady_overlap(
    flows: Floats, prefix_tokens: Floats, private_tps: Floats, capacity_tokens: float
) -> Floats:
    """1 − e^(−f_rj·T_j): share of family r's requests that find their prefix on worker j."""
    time_s = characteristic_time_s(flows, prefix_tokens, private_tps, capacity_tokens)
    return 1.0 - np.exp(-flows * time_s)
