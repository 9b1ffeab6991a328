"""Which split to run: the resource game's answer, checked against its neighbours.

Where it stands: the end of Γ_PD; `wardrop games split` prints it. Curves of the two pools give a
start, the variational equilibrium. Whole splits around the start are then tried while goodput
rises. An operator wants requests that keep *both* limits, and only a joint run counts them.
"""

from __future__ import annotations

from dataclasses import dataclass

from wardrop.games.resource.attainment import Attainment, AttainmentSource, FromCallable
from wardrop.games.resource.game import (
    PoolCurves,
    VariationalSplit,
    Welfare,
    equilibria,
    integer_rule,
    marginal_gains,
    pool_curves,
    variational_split,
)
from wardrop.games.routing.latency import require

SLACK = 0.005  # goodput given up, at most, to stand away from a cliff


@dataclass(frozen=True)
class SplitChoice:
    """A split with its evidence.

    Attributes:
        prefill_workers: chosen.
        decode_workers: the rest.
        attainment: what the chosen split attains.
        neighbours: every split that was run, by prefill workers.
        variational: the equilibrium of equal marginal gains, from the curves.
        rule: where the integer rule stops, from the curves.
        equilibria: how many splits are generalised Nash equilibria.
        gain: attainment of one more prefill worker at the choice.
        loss: attainment of one fewer decode worker there.
        curves: of the two pools.
    """

    prefill_workers: int
    decode_workers: int
    attainment: Attainment
    neighbours: dict[int, Attainment]
    variational: VariationalSplit
    rule: int
    equilibria: int
    gain: float
    loss: float
    curves: PoolCurves


def choose_split(
    source: AttainmentSource, workers: int, welfare: Welfare = "sum", reach: int = 2
) -> SplitChoice:
    """The split of greatest goodput, by the game and then by trying its neighbourhood.

    1. pool curves (2(G − 1) evaluations at most), variational equilibrium, integer rule from it;
    2. run that split and those within `reach`; move to the best; repeat until it is the centre;
    3. of the splits within `SLACK` of the best goodput take the one nearest the variational
       equilibrium: on a plateau that is its middle, away from both cliffs.

    Within `SLACK` of the best when goodput has no second hill further than `reach` from the first;
    brute force (`every_split`) is G − 1 runs and settles any doubt.

    Args:
        source: what evaluates a split.
        workers: G ≥ 2 in both pools.
        welfare: 'sum' (the paper's U_P + U_D) or 'product' (limits kept independently; ours).
        reach: how far to look around the centre, ≥ 1.
    """
    require(workers >= 2, f"{workers} workers", "at least 2, one for each pool")
    require(reach >= 1, reach, "reach ≥ 1")
    curves = pool_curves(source, workers)
    variational = variational_split(curves, welfare)
    start = min(max(round(variational.prefill_workers), 1), workers - 1)
    rule = integer_rule(curves, start, welfare)
    joint = FromCallable(source.attainment)
    tried: dict[int, Attainment] = {}
    centre, moved = rule, True
    while moved:
        for p in range(max(1, centre - reach), min(workers - 1, centre + reach) + 1):
            tried[p] = joint.attainment(p, workers - p)
        best = max(tried, key=lambda p: (tried[p].goodput_rps, -abs(p - centre)))
        moved, centre = best != centre, best
    enough = (1.0 - SLACK) * tried[centre].goodput_rps
    near = [p for p in tried if tried[p].goodput_rps >= enough]
    centre = min(near, key=lambda p: (abs(p - variational.prefill_workers), p))
    gain, loss = marginal_gains(curves, centre)
    return SplitChoice(
        prefill_workers=centre,
        decode_workers=workers - centre,
        attainment=tried[centre],
        neighbours=dict(sorted(tried.items())),
        variational=variational,
        rule=rule,
        equilibria=len(equilibria(curves)),
        gain=gain,
        loss=loss,
        curves=curves,
    )


def every_split(source: AttainmentSource, workers: int) -> dict[int, Attainment]:
    """Brute force: what each split attains, by prefill workers; G − 1 runs."""
    require(workers >= 2, f"{workers} workers", "at least 2, one for each pool")
    return {p: source.attainment(p, workers - p) for p in range(1, workers)}
