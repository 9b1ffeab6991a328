"""The three games together: cache → overlap → routing → pressure → split.

`docs/explanation/games/coupled.md` explains the loop.

* `cache`: hit rates by Che's approximation.
* `planner`: the rule of the planner, with its linear theory.
* `loop`: the closed loop over time.
* `advice`: the stability map, and a recommendation for a planner.
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
