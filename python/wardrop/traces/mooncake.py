"""The Mooncake trace format: JSON lines with block ids, and sessions where a trace has them.

A row is `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [id, …]}`.
Optional are `"session_id"` and, on later turns of a session, `"delay"` (ms after the end of the
previous turn). Source: Mooncake (FAST '25) and its published traces.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec

from wardrop.traces.fields import FloatOrInt, Line, block_id, whole
from wardrop.traces.rows import TraceFile, TraceRow


class _Row(msgspec.Struct):
    """A row as the file holds it. Recorders write lengths as `512` and as `512.0`."""

    input_length: FloatOrInt
    output_length: FloatOrInt
    hash_ids: Annotated[list[int | str], msgspec.Meta(min_length=1)]
    timestamp: float | None = None
    session_id: int | str | None = None
    delay: Annotated[float, msgspec.Meta(ge=0)] | None = None


_DECODER = msgspec.json.Decoder(_Row)


def parse_mooncake(name: str, lines: Iterable[Line]) -> TraceFile:
    """The rows of a Mooncake trace, in the order of the file.

    Any integer of 64 bits is the name of a block, signed or not.

    Raises:
        TraceError: a field is missing or not as expected.
    """
    return TraceFile(name, tuple(map(_row, lines)))


def _row(line: Line) -> TraceRow:
    row = line.decode(_DECODER)
    return TraceRow(
        timestamp_ms=row.timestamp,
        input_tokens=whole(line, "input_length", row.input_length, 1),
        output_tokens=max(1, whole(line, "output_length", row.output_length)),
        hash_ids=tuple(block_id(line, "hash_ids", each) for each in row.hash_ids),
        session=row.session_id,
        delay_ms=row.delay or 0.0,
    )
