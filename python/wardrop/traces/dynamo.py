"""Dynamo's request trace (`DYN_REQUEST_TRACE`): JSON lines, one event each.

Of all events only `request_end` is read: `{"event_type": "request_end", "request":
{"request_received_ms", "output_tokens", "replay": {"trace_block_size", "input_length",
"input_sequence_hashes"}}}`, possibly below a key `"event"`. Dynamo writes an event when its request
ends, so the rows are sorted by arrival here.
"""

from __future__ import annotations

from collections.abc import Iterable

from wardrop.traces.fields import Line
from wardrop.traces.rows import TraceError, TraceFile, TraceRow

_MAX_HASH = 2**64 - 1


def parse_dynamo(name: str, lines: Iterable[Line], limit: int | None) -> TraceFile:
    """The requests of a Dynamo trace, by arrival; at most `limit` of them, in file order.

    Sequence hashes become small ids in the order of their first use. Dynamo hashes whole blocks
    only, so the last, partial block of a prompt has no id.

    Raises:
        TraceError: a field is missing or not as expected, or the rows differ in block size.
    """
    sizes: set[int] = set()
    found: list[tuple[float, int, int, list[int]]] = []
    for line in lines:
        event = line.inner("event") if "event" in line.values else line
        if event.values.get("event_type") != "request_end":
            continue
        request = event.inner("request")
        replay = request.inner("replay")
        sizes.add(replay.whole("trace_block_size", 1))
        found.append(
            (
                request.number("request_received_ms"),
                replay.whole("input_length", 1),
                request.whole("output_tokens") if request.values.get("output_tokens") else 1,
                replay.whole_list("input_sequence_hashes", _MAX_HASH),
            )
        )
        if limit is not None and len(found) >= limit:
            break
    if not found:
        raise TraceError(f"{name}: got no request_end event; expected at least one")
    if len(sizes) != 1:
        raise TraceError(f"{name}: got the block sizes {sorted(sizes)}; expected one for all rows")
    found.sort(key=lambda row: row[0])
    ids: dict[int, int] = {}
    rows = tuple(
        TraceRow(at, tokens, output, tuple(ids.setdefault(value, len(ids)) for value in hashes))
        for at, tokens, output, hashes in found
    )
    return TraceFile(name, rows, sizes.pop())
