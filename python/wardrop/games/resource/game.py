"""Γ_PD as a game: two pools, one shared budget of workers.

Where it stands: on two attainment curves, however they were had. Each pool wants more workers;
together they may not exceed G. That is a generalised Nash problem with a shared constraint, and it
has many equilibria: *every* split that leaves no useful worker idle. The paper selects the
variational one, where the marginal gains are equal, U_P′ = U_D′ = λ [R]; it never ran it [A].
Curves: U[g] for g = 0..G workers, shares from 0 to 1, U[0] = 0 unless known better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from wardrop.games.errors import GameError
from wardrop.games.resource.attainment import AttainmentSource
from wardrop.games.routing.latency import Floats, require

Welfare: TypeAlias = Literal["sum", "product"]
_TINY = 1e-9


@dataclass(frozen=True)
class PoolCurves:
    """Attainment of each pool by its own size.

    Attributes:
        prefill: (G + 1,) U_P.
        decode: (G + 1,) U_D.
    """

    prefill: Floats
    decode: Floats

    def __post_init__(self) -> None:
        same = self.prefill.shape == self.decode.shape and self.prefill.ndim == 1
        require(same, (self.prefill.shape, self.decode.shape), "two curves of one length, G + 1")
        require(self.workers >= 2, self.workers, "at least 2 workers, one for each pool")

    @property
    def workers(self) -> int:
        """G, the shared budget."""
        return self.prefill.size - 1

    def utilities(self, welfare: Welfare) -> tuple[Floats, Floats]:
        """The curves ('sum'), or their logarithms ('product': proportional fairness, Nash 1950).

        Returns:
            Prefill and decode, (workers + 1,) each, by the workers of the pool.

        Raises:
            GameError: `welfare` is neither.
        """
        if welfare == "sum":
            return self.prefill, self.decode
        if welfare == "product":
            return np.log(np.maximum(self.prefill, _TINY)), np.log(np.maximum(self.decode, _TINY))
        raise GameError(f"got welfare {welfare!r}; expected 'sum' or 'product'")


def pool_curves(source: AttainmentSource, workers: int) -> PoolCurves:
    """U_P(g) with the other pool ample, and U_D(g) likewise: 2(G − 1) evaluations at most.

    'Ample' is G − 1 workers, the most the other pool could ever have.
    """
    require(workers >= 2, workers, "at least 2 workers, one for each pool")
    ample = workers - 1
    prefill, decode = np.zeros(workers + 1), np.zeros(workers + 1)
    for g in range(1, workers):
        prefill[g] = source.attainment(g, ample).ttft
        decode[g] = source.attainment(ample, g).itl
    prefill[workers], decode[workers] = prefill[ample], decode[ample]
    return PoolCurves(prefill, decode)


def equilibria(curves: PoolCurves, tolerance: float = 1e-12) -> list[tuple[int, int]]:
    """All integer generalised Nash equilibria (g_P, g_D) with g_P + g_D ≤ G, g ≥ 1.

    A pair is one if neither pool gains by any size that the other leaves it. With increasing curves
    that is the whole frontier g_P + g_D = G: why a selection is needed. Source: Rosen 1965 for the
    concept.
    """
    g, found = curves.workers, list[tuple[int, int]]()
    for p in range(1, g):
        for d in range(1, g - p + 1):
            p_best = curves.prefill[1 : g - d + 1].max() <= curves.prefill[p] + tolerance
            d_best = curves.decode[1 : g - p + 1].max() <= curves.decode[d] + tolerance
            if p_best and d_best:
                found.append((p, d))
    return found


def concave_majorant(curve: Floats) -> Floats:
    """Least concave curve above the points 1..G, same shape; index 0 is kept as it is.

    Attainment is S-shaped under overload; the variational equilibrium needs it concave.
    """
    hull: list[int] = []
    for g in range(1, curve.size):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (curve[b] - curve[a]) * (g - b) > (curve[g] - curve[b]) * (b - a):
                break
            hull.pop()
        hull.append(g)
    lifted = curve.copy()
    lifted[1:] = np.interp(np.arange(1, curve.size), hull, curve[hull])
    return lifted


@dataclass(frozen=True)
class VariationalSplit:
    """The equilibrium at which the shared constraint has one price.

    Attributes:
        prefill_workers: real-valued size of the prefill pool; the rest decodes.
        price: λ, gain in attainment per worker, equal in both pools.
    """

    prefill_workers: float
    price: float


def variational_split(curves: PoolCurves, welfare: Welfare = "sum") -> VariationalSplit:
    """U_P′(x) = U_D′(G − x) = λ on the concave majorants, by walking one piece at a time.

    Formula: maximise U_P(x) + U_D(G − x) over 1 ≤ x ≤ G − 1 (the KKT point of the variational
    inequality, Facchinei and Kanzow 2007). Ties give the middle of the optimal interval.

    Source: the selection is the paper's [R]; the majorant and the integer grid are ours [O].
    """
    first, second = (concave_majorant(u) for u in curves.utilities(welfare))
    g = curves.workers
    total = np.array([first[x] + second[g - x] for x in range(1, g)])
    best = np.flatnonzero(total >= total.max() - 1e-12) + 1
    x = 0.5 * float(best[0] + best[-1])
    at = min(int(x), g - 2) if g > 2 else 1
    rising = first[at + 1] - first[at] if at + 1 < g else 0.0
    falling = second[g - at] - second[g - at - 1] if g - at - 1 >= 1 else 0.0
    return VariationalSplit(x, float(max(min(rising, falling), 0.0)))


def marginal_gains(curves: PoolCurves, prefill_workers: int) -> tuple[float, float]:
    """(gain of one more prefill worker, loss of one fewer decode worker), in attainment."""
    g, p = curves.workers, prefill_workers
    require(1 <= p <= g - 1, p, f"1 to {g - 1} prefill workers")
    gain = curves.prefill[p + 1] - curves.prefill[p]
    loss = curves.decode[g - p] - curves.decode[g - p - 1]
    return float(gain), float(loss)


def integer_rule(curves: PoolCurves, start: int, welfare: Welfare = "sum") -> int:
    """Move one worker while the receiver's gain exceeds the donor's loss: the prefill pool's size.

    Exact for concave curves (marginal analysis: Fox 1966); on S-shaped ones it stops at a local
    best, which a test shows. Source: ours [O], from the paper's equal-marginal condition.
    """
    first, second = curves.utilities(welfare)
    g, p = curves.workers, start
    require(1 <= p <= g - 1, p, f"a start from 1 to {g - 1}")
    while True:
        here = first[p] + second[g - p]
        up = first[p + 1] + second[g - p - 1] - here if p + 1 <= g - 1 else -np.inf
        down = first[p - 1] + second[g - p + 1] - here if p - 1 >= 1 else -np.inf
        if max(up, down) <= 1e-12:
            return p
        p += 1 if up >= down else -1
