"""The three games together: cache → overlap → routing → pressure → split.

See `docs/explanation/games/coupled.md`.
`cache` is Che's approximation, `planner` the rule with its linear theory, `loop` the closed loop,
`advice` the stability map and the recommendation that a planner can read.
"""

from wardrop.games.coupled.advice import (
    Advice,
    RestPoint,
    StabilityMap,
    advise,
    example_fleet,
    rest_point,
    stability_map,
)
from wardrop.games.coupled.loop import Fleet, History, run_loop
from wardrop.games.coupled.planner import Planner, critical_gain, spectral_radius

__all__ = [
    "Advice",
    "Fleet",
    "History",
    "Planner",
    "RestPoint",
    "StabilityMap",
    "advise",
    "critical_gain",
    "example_fleet",
    "rest_point",
    "run_loop",
    "spectral_radius",
    "stability_map",
]
