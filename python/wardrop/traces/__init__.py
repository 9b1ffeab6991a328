"""Recorded request traces: one reader for the formats of Mooncake, Dynamo, Azure and Wardrop.

A trace holds arrival times, prompt and answer lengths, and block ids. It holds no text and no
tokens. `read_trace` returns typed rows; `wardrop.replay`, `wardrop.games` and `wardrop.workload`
turn the rows into the arrays or requests that each of them needs.
"""

from wardrop.traces.read import read_trace
from wardrop.traces.rows import (
    TraceError,
    TraceFile,
    TraceRow,
    implied_block_size,
    spread_evenly,
)

__all__ = [
    "TraceError",
    "TraceFile",
    "TraceRow",
    "implied_block_size",
    "read_trace",
    "spread_evenly",
]
