"""From a trace to Γ_KV: the demand for blocks, today's cost, and the gain of replication.

Where it stands: the end of the caching game; `wardrop games caching --trace` prints it. The trace
is replayed over a fleet of `TieredCache`s under a routing rule; the hottest blocks become the
objects, the rates at which each worker asked for them the demand, and snapshots of the caches
"today's placement". Ours [O].

Assumptions, to be read with every figure: only the hottest `objects` blocks are priced, each as one
object; they share the room that today's caches gave them; a block may be fetched from any worker
that holds it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from wardrop.games.caching.equilibria import settle
from wardrop.games.caching.frequency import TieredCache, placement_of
from wardrop.games.caching.game import Placement, PlacementGame, empty_placement
from wardrop.games.caching.optimum import optimal_placement
from wardrop.games.caching.topology import ModelShape, Tier, Topology, default_tiers
from wardrop.games.errors import GameError
from wardrop.games.ratio import cost_ratio
from wardrop.games.routing.latency import Floats, require
from wardrop.games.trace import Trace

Spread: TypeAlias = Literal["round_robin", "affinity"]


@dataclass(frozen=True)
class FleetCaches:
    """The caches of a fleet.

    Attributes:
        topology: where the workers are.
        g1_blocks: blocks that fit in a worker's HBM.
        g2_blocks: blocks that fit in its host memory.
        recompute_s_per_token: prefill seconds a token, the price of finding a block nowhere.
        shape: of the model, for a block's bytes.
    """

    topology: Topology
    g1_blocks: int
    g2_blocks: int
    recompute_s_per_token: float = 37e-6
    shape: ModelShape = field(default_factory=ModelShape)


@dataclass(frozen=True)
class Replay:
    """A trace replayed over the fleet's caches.

    Attributes:
        objects: the hottest block ids, hottest first.
        asked: (workers, objects) times each worker was asked for each.
        snapshots: placements of those objects, evenly spaced over the second half.
        hit_share: blocks found on the chosen worker ÷ blocks asked for.
        span_s: seconds replayed.
    """

    objects: tuple[int, ...]
    asked: NDArray[np.int64]
    snapshots: tuple[Placement, ...]
    hit_share: float
    span_s: float


def replay_caches(
    trace: Trace, fleet: FleetCaches, objects: int, routing: Spread = "affinity", snapshots: int = 8
) -> Replay:
    """Replay a trace over LRU caches with KVBM's rule. O(total blocks).

    Args:
        trace: with block ids.
        fleet: rooms and topology.
        objects: how many of the hottest blocks to follow.
        routing: 'round_robin', or 'affinity': most overlap among workers below 1.25 × the mean
            load.
        snapshots: how many placements to keep.

    Raises:
        GameError: the trace has no block ids.
    """
    heat = Counter(block for blocks in trace.blocks for block in blocks)
    if not heat:
        raise GameError(
            f"got {trace.name} without hash_ids; expected prefix blocks (Mooncake rows)"
        )
    hottest = tuple(block for block, _ in heat.most_common(objects))
    place = {block: index for index, block in enumerate(hottest)}
    m = fleet.topology.workers
    caches = [TieredCache(fleet.g1_blocks, fleet.g2_blocks) for _ in range(m)]
    asked = np.zeros((m, len(hottest)), dtype=np.int64)
    given = np.zeros(m)
    at = set(np.linspace(trace.requests // 2, trace.requests - 1, snapshots, dtype=int).tolist())
    kept: list[Placement] = []
    found = 0
    for i, blocks in enumerate(trace.blocks):
        worker = i % m if routing == "round_robin" else _nearest(caches, blocks, given)
        given[worker] += len(blocks)
        found += caches[worker].serve(blocks, float(trace.arrival_s[i]))
        for block in blocks:
            if block in place:
                asked[worker, place[block]] += 1
        if i in at:
            kept.append(placement_of(caches, hottest))
    return Replay(hottest, asked, tuple(kept), found / sum(heat.values()), trace.span_s)


def _nearest(caches: list[TieredCache], blocks: tuple[int, ...], given: Floats) -> int:
    open_to = np.flatnonzero(given <= 1.25 * given.mean())
    overlaps = [(caches[j].overlap(blocks), -given[j]) for j in open_to.tolist()]
    return int(open_to[max(range(len(overlaps)), key=overlaps.__getitem__)])


def game_of(replay: Replay, fleet: FleetCaches, trace: Trace) -> PlacementGame:
    """The capacitated game of the hottest blocks.

    demand = asked ÷ span; distances and tier reads from the block's bytes; origin = the cheaper of
    G4 and recomputing; room = what the representative snapshot gave these objects per worker and
    tier, so that no placement is blamed for the room it never had.
    """
    size = fleet.shape.block_bytes(trace.block_tokens)
    tiers: tuple[Tier, ...] = default_tiers()[:2]
    recompute = fleet.recompute_s_per_token * trace.block_tokens
    free = PlacementGame(
        demand=replay.asked / replay.span_s,
        distance=fleet.topology.distances(size),
        rent=np.zeros(len(tiers)),
        read=np.array([tier.link.seconds(size) for tier in tiers]),
        origin=min(recompute, fleet.topology.storage.seconds(size)),
    )
    shot = representative(replay, free)
    held = [(shot == tier + 1).sum(axis=1) for tier in range(len(tiers))]
    return replace(free, capacity=np.array(held, dtype=np.float64).T)


def representative(replay: Replay, game: PlacementGame) -> Placement:
    """The snapshot of median social cost (the lower median): today's placement."""
    require(len(replay.snapshots) > 0, "no snapshots", "a replay with at least one")
    ordered = sorted(replay.snapshots, key=game.social_cost)
    return ordered[(len(ordered) - 1) // 2]


@dataclass(frozen=True)
class PlacementVerdict:
    """Where the hottest blocks should live. Costs: seconds of delay per second of service.

    Attributes:
        today_cost: cost of LRU with KVBM's rule, at the snapshot of median cost.
        equilibrium_cost: cost of the selfish placement that best response reaches from today's.
        optimum_cost: exact least cost in the same room.
        nothing_cost: cost if no worker kept any of the hottest blocks.
        replication: (copies, cost) if each of the hottest eighth of the blocks had that many
            copies, room found by dropping the coldest.
        converged: best response came to rest.
    """

    today_cost: float
    equilibrium_cost: float
    optimum_cost: float
    nothing_cost: float
    replication: tuple[tuple[int, float], ...]
    converged: bool

    @property
    def price_of_today(self) -> float:
        """Today ÷ optimum in the same room, ≥ 1; 1 if neither costs anything."""
        return cost_ratio(self.today_cost, self.optimum_cost)

    @property
    def price_of_selfishness(self) -> float:
        """Equilibrium ÷ optimum: a lower bound on the price of anarchy, from one equilibrium."""
        return cost_ratio(self.equilibrium_cost, self.optimum_cost)


def judge_placement(game: PlacementGame, replay: Replay) -> PlacementVerdict:
    """Today's placement against an equilibrium, the exact optimum and replication."""
    today = representative(replay, game)
    rest = settle(game, today)
    best = optimal_placement(game)
    copies = sorted({1, 2, 4, game.workers} & set(range(1, game.workers + 1)))
    return PlacementVerdict(
        today_cost=game.social_cost(today),
        equilibrium_cost=game.social_cost(rest.placement),
        optimum_cost=best.social_cost,
        nothing_cost=game.social_cost(empty_placement(game)),
        replication=tuple((c, game.social_cost(replicated(game, c))) for c in copies),
        converged=rest.converged,
    )


def replicated(game: PlacementGame, copies: int) -> Placement:
    """`copies` of each of the hottest eighth, one of each other block, while room lasts.

    Each copy goes to the worker that asks most for the block and has room in its fastest tier.
    """
    require(1 <= copies <= game.workers, copies, f"1 to {game.workers} copies")
    demand = np.asarray(game.demand)
    room = np.minimum(game.room, game.objects).astype(np.intp).copy()
    placement = empty_placement(game)
    hot = max(1, game.objects // 8)
    for thing in range(game.objects):
        wanted = copies if thing < hot else 1
        for worker in np.argsort(-demand[:, thing], kind="stable").tolist():
            tier = int(np.argmax(room[worker] > 0))
            if wanted and room[worker, tier] > 0:
                placement[worker, thing] = tier + 1
                room[worker, tier] -= 1
                wanted -= 1
    return placement


def scaled(game: PlacementGame, factor: float) -> PlacementGame:
    """The same game with every worker's room multiplied (rounded down): more or less memory."""
    require(factor > 0, factor, "a factor > 0")
    return replace(game, capacity=np.floor(game.room * factor))
