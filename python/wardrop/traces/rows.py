"""The rows of a trace, and what follows from the rows alone: block size and arrival times."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wardrop.errors import InputError

_LARGEST_BLOCK_SHIFT = 16


class TraceError(InputError):
    """A trace that cannot be read. The text names the file and, for a bad row, its line."""


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One recorded request.

    Attributes:
        timestamp_ms: arrival on the clock of the recorder, in ms; None where the row has none.
        input_tokens: prompt length in tokens, at least 1.
        output_tokens: answer length in tokens, at least 1: an engine always samples once.
        hash_ids: ids of the prompt's blocks, first block first. An id stands for one block and
            everything before it. Blocks without an id belong to this request alone.
        session: name of the conversation, or None.
        delay_ms: pause between the end of the previous turn of the session and this turn, in ms.
    """

    timestamp_ms: float | None
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] = ()
    session: str | int | None = None
    delay_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class TraceFile:
    """The rows of one trace.

    Attributes:
        name: name of the file, without its folder.
        rows: at least one row. Dynamo and Azure rows are sorted by arrival; Mooncake rows are in
            the order of the file.
        block_size: tokens of a block as the file states it, or None where no row states it.
    """

    name: str
    rows: tuple[TraceRow, ...]
    block_size: int | None = None

    def by_arrival(self) -> TraceFile:
        """The same trace, its rows sorted by arrival.

        Raises:
            TraceError: a row has no timestamp.
        """
        if any(row.timestamp_ms is None for row in self.rows):
            raise TraceError(f"{self.name}: got a row without a timestamp; expected one in each")
        rows = sorted(self.rows, key=lambda row: row.timestamp_ms or 0.0)
        return replace(self, rows=tuple(rows))

    def arrival_s(self) -> NDArray[np.float64]:
        """(rows,) arrivals in seconds after the first row; NaN where a row has no timestamp."""
        times = [
            float("nan") if row.timestamp_ms is None else row.timestamp_ms for row in self.rows
        ]
        seconds = np.asarray(times, dtype=np.float64) / 1e3
        return seconds - seconds[0]

    def tokens_per_block(self) -> int:
        """The block size that the file states, or else the one that its rows imply.

        Raises:
            TraceError: the file states none, and no power of two explains the rows.
        """
        if self.block_size is not None:
            return self.block_size
        try:
            return implied_block_size(self.rows)
        except TraceError as error:
            raise TraceError(f"{self.name}: {error}") from error


def implied_block_size(rows: Iterable[TraceRow]) -> int:
    """The smallest power of two b with ⌈input_tokens / b⌉ = number of ids in every row.

    Rows without ids imply nothing; a trace of such rows alone gets 64. O(rows · log b).

    Raises:
        TraceError: no power of two from 1 to 65,536 fits every row.
    """
    seen = [(row.input_tokens, len(row.hash_ids)) for row in rows if row.hash_ids]
    if not seen:
        return 64
    for shift in range(_LARGEST_BLOCK_SHIFT + 1):
        size = 1 << shift
        if all(-(-tokens // size) == count for tokens, count in seen):
            return size
    raise TraceError(
        "no block size fits: got rows whose number of hash_ids is not ⌈input_length ÷ size⌉ for "
        "any one power of two up to 65,536; give the block size of the trace"
    )


def spread_evenly(arrival_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spread equal arrivals evenly up to the next distinct arrival.

    A recorder that writes in ticks puts all requests of a tick at one moment. Replaying the tick as
    one burst would be a burst that never happened. The last group is spread over one mean tick.

    Args:
        arrival_s: (requests,) seconds, not falling.
    """
    times, start, count = np.unique(arrival_s, return_index=True, return_counts=True)
    if times.size < 2:
        return arrival_s
    widths = np.append(np.diff(times), np.diff(times).mean())
    place = np.arange(arrival_s.size) - np.repeat(start, count)
    return np.repeat(times, count) + np.repeat(widths / count, count) * place
