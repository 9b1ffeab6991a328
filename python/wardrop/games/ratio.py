"""A social cost as a multiple of the optimum, with a value where the optimum costs nothing."""

from __future__ import annotations

import math


def cost_ratio(cost: float, optimum_cost: float) -> float:
    """A social cost over the optimum, ≥ 1.

    An optimum of 0 means that everything fits. A cost of 0 is then as good as the optimum and gives
    1. Any other cost gives infinity.

    Args:
        cost: social cost of a state, seconds, ≥ 0. It is nan where no such state exists.
        optimum_cost: least social cost, seconds, ≥ 0.

    Returns:
        The ratio. It is nan for a nan cost.
    """
    if math.isnan(cost) or optimum_cost > 0:
        return cost / optimum_cost if optimum_cost > 0 else cost
    return 1.0 if cost <= 0 else math.inf
