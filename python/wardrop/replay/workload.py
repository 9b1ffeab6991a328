"""Workloads: requests as columns, as the simulator replays them.

A workload names prompts by block ids, never by text. An id stands for one block of the trace *and
everything before the block*. Times are in milliseconds, lengths in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardrop._core import SimWorkload
from wardrop.errors import InputError

NO_PREDECESSOR = np.uint32(0xFFFFFFFF)
"""Value of `Workload.after` for a request that waits for no other request."""


class ReplayError(InputError):
    """Bad input to a replay. The text says what was received and what is expected."""


@dataclass(frozen=True)
class Workload:
    """Requests in order of release.

    Attributes:
        name: name of the trace or generator.
        arrival_ms: (n,) float64, not falling; ignored for later turns of a session and in a closed
            loop.
        input_tokens: (n,) uint32, at least 1.
        output_tokens: (n,) uint32, at least 1.
        block_start: (n + 1,) uint64, offsets into `blocks`.
        blocks: uint32, dense block ids of all prompts, one prompt after the other.
        block_size: tokens per block id.
        after: (n,) uint32, index of the request that must end first, or `NO_PREDECESSOR`.
        think_ms: (n,) float64, pause after the end of the request in `after`.
    """

    name: str
    arrival_ms: NDArray[np.float64]
    input_tokens: NDArray[np.uint32]
    output_tokens: NDArray[np.uint32]
    block_start: NDArray[np.uint64]
    blocks: NDArray[np.uint32]
    block_size: int
    after: NDArray[np.uint32] = field(repr=False)
    think_ms: NDArray[np.float64] = field(repr=False)

    def __len__(self) -> int:
        return int(self.input_tokens.size)

    def __getstate__(self) -> dict[str, Any]:
        """The columns. Another process builds its own native form."""
        return {name: value for name, value in self.__dict__.items() if name != "native"}

    @cached_property
    def native(self) -> SimWorkload:
        """The checked native form, which all simulations of a sweep share.

        Raises:
            ValueError: a column is out of range; the text names it.
        """
        return SimWorkload(
            arrival_ms=np.ascontiguousarray(self.arrival_ms),
            input_tokens=np.ascontiguousarray(self.input_tokens),
            output_tokens=np.ascontiguousarray(self.output_tokens),
            block_start=np.ascontiguousarray(self.block_start),
            blocks=np.ascontiguousarray(self.blocks),
            block_size=self.block_size,
            after=np.ascontiguousarray(self.after),
            think_ms=np.ascontiguousarray(self.think_ms),
        )

    @property
    def span_s(self) -> float:
        """Seconds between the first and the last open-loop arrival."""
        roots = self.arrival_ms[self.after == NO_PREDECESSOR]
        return float(roots[-1] - roots[0]) / 1e3 if roots.size else 0.0

    def part(self, start: float, stop: float) -> Workload:
        """The requests from share `start` to share `stop`, with the first arrival at 0.

        A session across the cut loses its earlier turns: its first kept turn starts at the recorded
        time.

        Raises:
            ReplayError: the shares are not in order, or no request is left.
        """
        if not 0.0 <= start < stop <= 1.0:
            raise ReplayError(f"got part {start} to {stop}; expected 0 ≤ start < stop ≤ 1")
        first, last = round(start * len(self)), round(stop * len(self))
        if first >= last:
            raise ReplayError(f"part {start} to {stop} of {len(self)} requests is empty")
        rows = slice(first, last)
        after = self.after[rows].astype(np.int64) - first
        kept = (self.after[rows] != NO_PREDECESSOR) & (after >= 0)
        arrival = self.arrival_ms[rows].copy()
        # A turn without its predecessor waits for no request; such arrivals must not fall.
        roots = ~kept
        arrival[roots] = np.maximum.accumulate(arrival[roots])
        arrival -= arrival[roots][0]
        low, high = int(self.block_start[first]), int(self.block_start[last])
        return replace(
            self,
            name=f"{self.name}[{start:g}:{stop:g}]",
            arrival_ms=arrival,
            input_tokens=self.input_tokens[rows],
            output_tokens=self.output_tokens[rows],
            block_start=self.block_start[first : last + 1] - np.uint64(low),
            blocks=self.blocks[low:high],
            after=np.where(kept, after, int(NO_PREDECESSOR)).astype(np.uint32),
            think_ms=self.think_ms[rows],
        )

    def ideal_reuse(self) -> float:
        """Share of prompt tokens found in one unlimited cache, in trace order. O(blocks)."""
        seen = np.zeros(int(self.blocks.max(initial=0)) + 1, dtype=bool)
        hit = 0
        for i in range(len(self)):
            ids = self.blocks[int(self.block_start[i]) : int(self.block_start[i + 1])]
            misses = np.flatnonzero(~seen[ids])
            blocks = int(misses[0]) if misses.size else ids.size
            hit += min(blocks * self.block_size, int(self.input_tokens[i]))
            seen[ids] = True
        return hit / float(self.input_tokens.sum(dtype=np.uint64))


def from_lists(
    name: str,
    arrival_ms: NDArray[np.float64],
    input_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    ids: NDArray[np.int64],
    id_counts: NDArray[np.int64],
    block_size: int,
    after: NDArray[np.int64] | None = None,
    think_ms: NDArray[np.float64] | None = None,
) -> Workload:
    """Build a workload from block ids of any size, which become dense ids.

    Args:
        name: name of the trace or generator.
        arrival_ms: (n,) release times in ms.
        input_tokens: (n,) prompt lengths.
        output_tokens: (n,) answer lengths; 0 counts as 1, since an engine always samples once.
        ids: block ids of all prompts, one prompt after the other.
        id_counts: (n,) number of ids of each prompt.
        block_size: tokens per id.
        after: (n,) index of the predecessor, or −1; no predecessors by default.
        think_ms: (n,) pauses in ms; 0 by default.
    """
    n = arrival_ms.size
    _, dense = np.unique(ids, return_inverse=True)
    start = np.zeros(n + 1, dtype=np.uint64)
    np.cumsum(id_counts, out=start[1:])
    no_after = np.full(n, NO_PREDECESSOR, dtype=np.uint32)
    return Workload(
        name=name,
        arrival_ms=arrival_ms.astype(np.float64),
        input_tokens=np.maximum(input_tokens, 1).astype(np.uint32),
        output_tokens=np.maximum(output_tokens, 1).astype(np.uint32),
        block_start=start,
        blocks=dense.astype(np.uint32),
        block_size=block_size,
        after=no_after
        if after is None
        else np.where(after < 0, int(NO_PREDECESSOR), after).astype(np.uint32),
        think_ms=np.zeros(n) if think_ms is None else think_ms.astype(np.float64),
    )
