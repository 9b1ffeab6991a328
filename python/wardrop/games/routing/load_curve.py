"""Price of anarchy of two workers over load, per family of latency functions.

Each family has the instance on which its classical bound is attained. The command
`wardrop games poa` prints the curve, and `wardrop.games.plots` draws it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wardrop.games.errors import GameError
from wardrop.games.ratio import cost_ratio
from wardrop.games.routing.bounds import nonatomic_affine, nonatomic_mm1, nonatomic_polynomial
from wardrop.games.routing.latency import MM1, Affine, Latency, Polynomial
from wardrop.games.routing.nonatomic import NonatomicGame, equilibrium, optimum, pigou_tolls
from wardrop.games.routing.saturation import Mixed, Saturating


@dataclass(frozen=True)
class LoadPoint:
    """One load of a curve.

    Attributes:
        rate: requests per second.
        anarchy: price of anarchy.
        tolled: the same with Pigou tolls.
        bound: the classical bound there; nan where none is known.
    """

    rate: float
    anarchy: float
    tolled: float
    bound: float


TOP_RPS = {"affine": 2.0, "quadratic": 2.0, "quartic": 2.0, "mm1": 1.0, "saturating": 28.0}


def two_links(family: str, rate: float) -> Latency:
    """A worker that congests beside one that does not (or hardly does), for one load.

    affine, quadratic and quartic are Pigou's instance of degree 1, 2, 4; mm1 is a queue beside a
    server that never queues but is as slow as that queue would be with all of `rate`: the instances
    on which the bounds are attained. saturating is two workers with a knee.

    Raises:
        GameError: an unknown family.
    """
    degrees = {"quadratic": 2, "quartic": 4}
    if family == "affine":
        return Mixed([Affine(0.0, 1.0), Affine(1.0, 0.0)])
    if family in degrees:
        powers = [0.0] * degrees[family] + [1.0]
        return Mixed([Polynomial(powers), Affine(1.0, 0.0)])
    if family == "mm1":
        return Mixed([MM1(1.0), Affine(1.0 / (1.0 - rate), 0.0)])
    if family == "saturating":
        return Saturating([0.1, 0.4], 0.02, 0.2, [4.0, 8.0], [10.0, 20.0], 1.0)
    raise GameError(f"got --family {family}; expected one of {', '.join(TOP_RPS)}")


def bound_of(family: str, rate: float) -> float:
    """The classical bound for the family at this rate; nan for 'saturating'."""
    bounds = {
        "affine": nonatomic_affine(),
        "quadratic": nonatomic_polynomial(2),
        "quartic": nonatomic_polynomial(4),
    }
    return nonatomic_mm1(rate, 1.0) if family == "mm1" else bounds.get(family, float("nan"))


def load_curve(family: str, points: int) -> list[LoadPoint]:
    """Price of anarchy at evenly spaced loads below the top of the range.

    Args:
        family: name of the pair of links, as `two_links` takes it.
        points: number of loads, at least 2.

    Returns:
        One point per load, by ascending load in requests per second.

    Raises:
        GameError: `points` is below 2.
    """
    if points < 2:
        raise GameError(f"got --points {points}; expected at least 2")
    top = TOP_RPS.get(family, 1.0)
    curve: list[LoadPoint] = []
    for rate in np.linspace(0.0, top, points + 1, endpoint=False)[1:].tolist():
        latency = two_links(family, rate)
        game = NonatomicGame([rate], [[0.0, 0.0]], latency)
        best = optimum(game)
        charged = NonatomicGame([rate], [[0.0, 0.0]], latency, pigou_tolls(game, best))
        curve.append(
            LoadPoint(
                rate,
                cost_ratio(equilibrium(game).social_cost, best.social_cost),
                cost_ratio(equilibrium(charged).social_cost, best.social_cost),
                bound_of(family, rate),
            )
        )
    return curve
