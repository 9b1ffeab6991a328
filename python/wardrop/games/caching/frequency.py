"""Today's placement: LRU in HBM with KVBM's frequency rule in front of host memory, replayed.

Where it stands: the baseline that equilibrium and optimum are compared with. KVBM (Dynamo's block
manager) promotes a block from G1 to G2 once its count reaches 2. A count starts at 1 and doubles
each time the block is offered again. All counts fall by 1 every decay interval, and are dropped at
0. Source: KVBM's offload filter, with an interval of 300 s in an early version. The paper exercised
no spill [R]. LRU in both tiers is our reading [O].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from wardrop.games.caching.game import Placement
from wardrop.games.routing.latency import require

PROMOTE_FROM = 2
DECAY_S = 300.0


@dataclass
class FrequencyRule:
    """KVBM's offload filter: doubles on a hit, decays by one, promotable from `promote_from`.

    Invariant: every stored count is ≥ 1.
    """

    promote_from: int = PROMOTE_FROM
    decay_s: float = DECAY_S
    counts: dict[int, int] = field(default_factory=dict[int, int])
    _decayed_at_s: float = 0.0

    def offer(self, block: int, now_s: float) -> bool:
        """Count one sighting of a block at `now_s`; True if it may be promoted."""
        while now_s - self._decayed_at_s >= self.decay_s:
            self._decayed_at_s += self.decay_s
            self.counts = {key: count - 1 for key, count in self.counts.items() if count > 1}
        self.counts[block] = self.counts[block] * 2 if block in self.counts else 1
        return self.counts[block] >= self.promote_from


@dataclass
class TieredCache:
    """One worker's G1 and G2, both LRU, with the frequency rule between them.

    Invariant: neither tier ever holds more than its room.
    """

    g1_blocks: int
    g2_blocks: int
    rule: FrequencyRule = field(default_factory=FrequencyRule)
    g1: OrderedDict[int, None] = field(default_factory=OrderedDict[int, None])
    g2: OrderedDict[int, None] = field(default_factory=OrderedDict[int, None])

    def __post_init__(self) -> None:
        require(self.g1_blocks >= 1, self.g1_blocks, "room for at least one block in G1")
        require(self.g2_blocks >= 0, self.g2_blocks, "room ≥ 0 in G2")

    def overlap(self, blocks: Sequence[int]) -> int:
        """Leading blocks held in either tier."""
        for count, block in enumerate(blocks):
            if block not in self.g1 and block not in self.g2:
                return count
        return len(blocks)

    def serve(self, blocks: Sequence[int], now_s: float) -> int:
        """Run one request: its overlap; then all its blocks are kept, the frequent promoted."""
        found = self.overlap(blocks)
        for block in blocks:
            _touch(self.g1, block, self.g1_blocks)
            if self.rule.offer(block, now_s) and self.g2_blocks > 0:
                _touch(self.g2, block, self.g2_blocks)
            elif block in self.g2:
                self.g2.move_to_end(block)
        return found

    def tier_of(self, block: int) -> int:
        """1 in G1, 2 only in G2, 0 in neither."""
        return 1 if block in self.g1 else 2 if block in self.g2 else 0


def _touch(tier: OrderedDict[int, None], block: int, room: int) -> None:
    tier[block] = None
    tier.move_to_end(block)
    if len(tier) > room:
        tier.popitem(last=False)


def placement_of(caches: Sequence[TieredCache], objects: Sequence[int]) -> Placement:
    """The present placement of the given blocks: (workers, objects), as `game.Placement`."""
    rows = [[cache.tier_of(block) for block in objects] for cache in caches]
    return np.array(rows, dtype=np.int8).reshape(len(caches), len(objects))
