"""The Mooncake trace format: JSON lines with block ids, and sessions where a trace has them.

A row is `{"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [id, …]}`.
Optional are `"session_id"` and, on later turns of a session, `"delay"` (ms after the end of the
previous turn). Source: Mooncake (FAST '25) and its published traces.
"""

from __future__ import annotations

from collections.abc import Iterable

from wardrop.traces.fields import Line
from wardrop.traces.rows import TraceFile, TraceRow


def parse_mooncake(name: str, lines: Iterable[Line]) -> TraceFile:
    """The rows of a Mooncake trace, in the order of the file.

    Raises:
        TraceError: a field is missing or not as expected.
    """
    return TraceFile(name, tuple(map(_row, lines)))


def _row(line: Line) -> TraceRow:
    has_time = line.values.get("timestamp") is not None
    hash_ids = tuple(line.whole_list("hash_ids"))
    if not hash_ids:
        raise line.error("hash_ids", "at least one id")
    session = line.values.get("session_id")
    if session is not None and not isinstance(session, str | int):
        raise line.error("session_id", "a text or a whole number")
    return TraceRow(
        timestamp_ms=line.number("timestamp") if has_time else None,
        input_tokens=line.whole("input_length", 1),
        output_tokens=max(1, line.whole("output_length")),
        hash_ids=hash_ids,
        session=session,
        delay_ms=line.number("delay") if line.values.get("delay") is not None else 0.0,
    )
