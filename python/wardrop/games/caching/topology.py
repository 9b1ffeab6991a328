"""Where the workers are and what a block costs to move: seconds from bytes and bandwidths.

Where it stands: the bottom of Γ_KV. Distances come from a real fleet's shape: workers sit in nodes,
nodes in racks, and each level has a bandwidth. Tiers are the paper's [A]: G1 HBM, G2 host DRAM, G3
local SSD, G4 network storage; G1 to G3 belong to a worker, G4 to no worker. The default bandwidths
are ours [O], round figures of current hardware; give your own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wardrop.games.errors import GameError
from wardrop.games.routing.latency import Floats, require

GIGA = 1e9


@dataclass(frozen=True)
class ModelShape:
    """The size of a block.

    Attributes:
        layers: transformer layers.
        kv_heads: key/value heads over the whole model (all tensor-parallel ranks together).
        head_dim: width of a head.
        bytes_per_value: 2 for BF16, 1 for FP8.
    """

    layers: int = 80
    kv_heads: int = 8
    head_dim: int = 128
    bytes_per_value: int = 2

    def block_bytes(self, block_tokens: int) -> float:
        """2·layers·kv_heads·head_dim·bytes_per_value·block_tokens: keys and values, bytes."""
        require(block_tokens > 0, block_tokens, "block_tokens > 0")
        per_token = 2 * self.layers * self.kv_heads * self.head_dim * self.bytes_per_value
        return float(per_token * block_tokens)


@dataclass(frozen=True)
class Link:
    """One level of the fabric: seconds = setup_seconds + bytes / bytes_per_second."""

    bytes_per_second: float
    setup_seconds: float = 0.0

    def seconds(self, size_bytes: float) -> float:
        """Time to move a number of bytes, seconds."""
        return self.setup_seconds + size_bytes / self.bytes_per_second


@dataclass(frozen=True)
class Tier:
    """A place of a worker's own to keep a block.

    Attributes:
        name: G1, G2 or G3.
        link: what reading it back into HBM takes.
        rent: α, seconds of delay per second that holding one block there is worth, ≥ 0.
    """

    name: str
    link: Link
    rent: float = 0.0


def default_tiers() -> tuple[Tier, ...]:
    """G1 (in place), G2 over PCIe 5 x16 (50 GB/s), G3 local NVMe (10 GB/s); no rent. Ours [O]."""
    return (
        Tier("G1", Link(np.inf)),
        Tier("G2", Link(50 * GIGA, 20e-6)),
        Tier("G3", Link(10 * GIGA, 100e-6)),
    )


@dataclass(frozen=True)
class Topology:
    """Workers in nodes in racks.

    Attributes:
        node_of: (workers,) node of each worker.
        rack_of: rack of each node.
        node: link between two workers of one node (NVLink).
        rack: link between two nodes of one rack.
        fabric: link between racks.
        storage: link to G4, the same for all.
    """

    node_of: Sequence[int]
    rack_of: Sequence[int]
    node: Link = field(default_factory=lambda: Link(400 * GIGA, 10e-6))
    rack: Link = field(default_factory=lambda: Link(50 * GIGA, 20e-6))
    fabric: Link = field(default_factory=lambda: Link(25 * GIGA, 50e-6))
    storage: Link = field(default_factory=lambda: Link(5 * GIGA, 1e-3))

    def __post_init__(self) -> None:
        require(len(self.node_of) > 0, "no workers", "at least one worker")
        known = range(len(self.rack_of))
        stray = [node for node in self.node_of if node not in known]
        if stray:
            raise GameError(f"got node {stray[0]}; expected one of 0..{len(self.rack_of) - 1}")

    @classmethod
    def grid(cls, racks: int, nodes_per_rack: int, workers_per_node: int) -> Topology:
        """A regular fleet of racks × nodes_per_rack × workers_per_node workers."""
        shape = (racks, nodes_per_rack, workers_per_node)
        require(min(shape) >= 1, shape, "at least 1 of each")
        nodes = racks * nodes_per_rack
        return cls(
            node_of=[node for node in range(nodes) for _ in range(workers_per_node)],
            rack_of=[node // nodes_per_rack for node in range(nodes)],
        )

    @property
    def workers(self) -> int:
        """How many workers."""
        return len(self.node_of)

    def distances(self, size_bytes: float) -> Floats:
        """Seconds to fetch `size_bytes` from worker j to worker i: (workers, workers), diagonal 0.

        An ultrametric when each level is slower than the one below it.
        """
        node = np.asarray(self.node_of)
        rack = np.asarray(self.rack_of)[node]
        same_node: NDArray[np.bool_] = node[:, None] == node[None, :]
        same_rack: NDArray[np.bool_] = rack[:, None] == rack[None, :]
        seconds = np.where(
            same_rack, self.rack.seconds(size_bytes), self.fabric.seconds(size_bytes)
        )
        seconds = np.where(same_node, self.node.seconds(size_bytes), seconds)
        np.fill_diagonal(seconds, 0.0)
        return seconds
