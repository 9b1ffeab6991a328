"""Γ_KV, the caching game: workers choose which blocks to keep, and in which tier.

`docs/explanation/games/caching.md` explains the game.

* `topology`: seconds from bytes and bandwidths.
* `game`: the cost of a placement.
* `equilibria`, `optimum`: what selfish workers reach, and the least cost.
* `graphs`: reference graphs with published bounds.
* `frequency`: the rule of KVBM, Dynamo's block manager.
* `demand`: from a trace to a verdict.
* `paradox`: the search for a cache that hurts.
"""

from wardrop.games.caching.demand import (
    FleetCaches,
    PlacementVerdict,
    Replay,
    game_of,
    judge_placement,
    replay_caches,
)
from wardrop.games.caching.equilibria import (
    PlacementReport,
    Settled,
    analyse_placement,
    settle,
)
from wardrop.games.caching.frequency import FrequencyRule, TieredCache
from wardrop.games.caching.game import Placement, PlacementGame, empty_placement
from wardrop.games.caching.graphs import basic_game, complete_graph, line_graph, star_graph
from wardrop.games.caching.optimum import OptimalPlacement, optimal_placement
from wardrop.games.caching.paradox import Paradox, find_paradox
from wardrop.games.caching.topology import Link, ModelShape, Tier, Topology, default_tiers

__all__ = [
    "FleetCaches",
    "FrequencyRule",
    "Link",
    "ModelShape",
    "OptimalPlacement",
    "Paradox",
    "Placement",
    "PlacementGame",
    "PlacementReport",
    "PlacementVerdict",
    "Replay",
    "Settled",
    "Tier",
    "TieredCache",
    "Topology",
    "analyse_placement",
    "basic_game",
    "complete_graph",
    "default_tiers",
    "empty_placement",
    "find_paradox",
    "game_of",
    "judge_placement",
    "line_graph",
    "optimal_placement",
    "replay_caches",
    "settle",
    "star_graph",
]
