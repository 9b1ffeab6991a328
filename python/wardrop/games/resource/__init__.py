"""Γ_PD, the resource game: how many workers prefill and how many decode.

See `docs/explanation/games/resource.md`.
`attainment` is the interface to an evaluator of splits, and `queueing` with `pools` one evaluator.
`game` is the generalised Nash problem, and `split` chooses the split.
"""

from wardrop.games.resource.attainment import (
    Attainment,
    AttainmentSource,
    FromCallable,
)
from wardrop.games.resource.game import (
    PoolCurves,
    VariationalSplit,
    concave_majorant,
    equilibria,
    integer_rule,
    marginal_gains,
    pool_curves,
    variational_split,
)
from wardrop.games.resource.queueing import Engine, QueueingSource, ideal_reuse
from wardrop.games.resource.split import SplitChoice, choose_split, every_split
from wardrop.slo import Slo
from wardrop.timing import TimingCurves, builtin_timing, read_timing

__all__ = [
    "Attainment",
    "AttainmentSource",
    "Engine",
    "FromCallable",
    "PoolCurves",
    "QueueingSource",
    "Slo",
    "SplitChoice",
    "TimingCurves",
    "VariationalSplit",
    "builtin_timing",
    "choose_split",
    "concave_majorant",
    "equilibria",
    "every_split",
    "ideal_reuse",
    "integer_rule",
    "marginal_gains",
    "pool_curves",
    "read_timing",
    "variational_split",
]
