"""Random draws that the generators share: arrivals, lengths, and ids of blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wardrop.replay.workload import ReplayError


def poisson(rng: np.random.Generator, n: int, per_s: float) -> NDArray[np.float64]:
    """Times in ms of `n` arrivals of a Poisson process.

    Raises:
        ReplayError: the rate is not above 0.
    """
    if per_s <= 0:
        raise ReplayError(f"got {per_s} requests/s; expected above 0")
    return np.cumsum(rng.exponential(1e3 / per_s, n))


def lengths(rng: np.random.Generator, n: int, mean: float, spread: float) -> NDArray[np.int64]:
    """Log-normal lengths with this mean and coefficient of variation, at least 1.

    `spread` 0 gives the mean.

    Raises:
        ReplayError: the mean is below 1, or the spread is below 0.
    """
    if mean < 1 or spread < 0:
        raise ReplayError(
            f"got mean length {mean} and spread {spread}; expected at least 1 and at least 0"
        )
    if spread == 0:
        return np.full(n, round(mean), dtype=np.int64)
    sigma = np.sqrt(np.log1p(spread * spread))
    return np.maximum(np.rint(rng.lognormal(np.log(mean) - sigma * sigma / 2, sigma, n)), 1).astype(
        np.int64
    )


def own(counts: NDArray[np.int64], first: int) -> list[NDArray[np.int64]]:
    """Per request `counts[i]` ids that no other request has, counted upwards from `first`."""
    starts = first + np.concatenate(([0], np.cumsum(counts)[:-1]))
    return [np.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
