"""The classical bounds on the price of anarchy, as functions.

Where they stand: beside every measured ratio, to say how bad it could have been. All are standard
results about selfish routing; none is the paper's own. Dimensionless, ≥ 1.
"""

from __future__ import annotations

import math

from wardrop.games.errors import GameError


def nonatomic_affine() -> float:
    """4/3, tight. Source: Roughgarden and Tardos 2002 (Pigou 1920 attains it)."""
    return 4.0 / 3.0


def nonatomic_polynomial(degree: int) -> float:
    """(1 − p(p+1)^(−(p+1)/p))^(−1) for polynomials of degree ≤ p with coefficients ≥ 0, tight.

    1.333, 1.626, 1.896, 2.151 for p = 1, 2, 3, 4. Source: Roughgarden 2003.

    Raises:
        GameError: degree below 0.
    """
    if degree < 0:
        raise GameError(f"got degree {degree}; expected 0 or more")
    if degree == 0:
        return 1.0
    return 1.0 / (1.0 - degree * (degree + 1) ** (-(degree + 1) / degree))


def nonatomic_mm1(rate: float, least_capacity: float) -> float:
    """½(1 + √(μ/(μ − R))) for total rate R and every server of capacity ≥ μ > R.

    Diverges as R → μ: the paper's "growth at saturation" [R]. Source: Roughgarden and Tardos 2002,
    Roughgarden 2003.

    Args:
        rate: R, requests per second in all, ≥ 0.
        least_capacity: μ, requests per second of the slowest server.

    Raises:
        GameError: R ≥ μ, where no finite bound exists.
    """
    if not 0 <= rate < least_capacity:
        raise GameError(
            f"got rate {rate:g} and least capacity {least_capacity:g}; expected 0 ≤ rate < "
            "capacity: past that the bound is infinite"
        )
    return 0.5 * (1.0 + math.sqrt(least_capacity / (least_capacity - rate)))


def atomic_affine() -> float:
    """5/2 for unit requests and pure equilibria, tight.

    Source: Christodoulou and Koutsoupias 2005; Awerbuch, Azar and Epstein 2005.
    """
    return 2.5


def atomic_affine_stability() -> float:
    """1 + 1/√3 ≈ 1.577: even the best pure equilibrium can cost this.

    Source: Caragiannis et al. 2006.
    """
    return 1.0 + 1.0 / math.sqrt(3.0)


def atomic_polynomial(degree: int) -> float:
    """[(k+1)^(2d+1) − k^(d+1)(k+2)^d] / [(k+1)^(d+1) − (k+2)^d + (k+1)^d − k^(d+1)], k = ⌊Φ_d⌋.

    Φ_d is the positive root of (x+1)^d = x^(d+1). 2.5 and 9.583 for d = 1 and 2, tight.
    Source: Aland, Dumrauf, Gairing, Monien and Schoppmann 2006.

    Raises:
        GameError: degree below 1.
    """
    if degree < 1:
        raise GameError(f"got degree {degree}; expected 1 or more")
    low, high = 1.0, float(degree + 2)
    for _ in range(200):
        middle = 0.5 * (low + high)
        above = (middle + 1) ** degree > middle ** (degree + 1)
        low, high = (middle, high) if above else (low, middle)
    k, d = math.floor(low + 1e-9), degree
    top = (k + 1) ** (2 * d + 1) - k ** (d + 1) * (k + 2) ** d
    return top / ((k + 1) ** (d + 1) - (k + 2) ** d + (k + 1) ** d - k ** (d + 1))


def queue_capacity_factor() -> float:
    """2: selfish no-regret queues are stable at twice the capacity that coordination needs.

    A factor on capacity, not on cost. Source: Gaitonde and Tardos 2020.
    """
    return 2.0
