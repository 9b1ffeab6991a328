"""Dynamo's request trace (`DYN_REQUEST_TRACE`): JSON lines, one event each.

Of all events only `request_end` is read: `{"event_type": "request_end", "request":
{"request_received_ms", "output_tokens", "replay": {"trace_block_size", "input_length",
"input_sequence_hashes"}}}`, possibly below a key `"event"`. Dynamo writes an event when its request
ends, so the rows are sorted by arrival here.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from wardrop.decoding import DecodeError, decode_json
from wardrop.traces.fields import MAX_LINE_BYTES, FloatOrInt, Line, block_id, whole
from wardrop.traces.rows import TraceError, TraceFile, TraceRow


class _Replay(msgspec.Struct):
    """What a replay needs of a request: lengths and names, no text."""

    trace_block_size: FloatOrInt
    input_length: FloatOrInt
    input_sequence_hashes: list[int | str]


class _Request(msgspec.Struct):
    """A request at its end."""

    request_received_ms: float
    replay: _Replay
    output_tokens: FloatOrInt | None = None


class _Event(msgspec.Struct):
    """An event of any type. Only the request of `request_end` is decoded further."""

    event_type: str | None = None
    request: msgspec.Raw = msgspec.Raw()


class _Row(_Event):
    """A row: an event, or an object with an event below `event`."""

    event: _Event | None = None


_ROW = msgspec.json.Decoder(_Row)
_REQUEST = msgspec.json.Decoder(_Request)


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
        request = _ended_request(line)
        if request is None:
            continue
        replay = request.replay
        sizes.add(whole(line, "replay.trace_block_size", replay.trace_block_size, 1))
        hashes = [
            block_id(line, "replay.input_sequence_hashes", each)
            for each in replay.input_sequence_hashes
        ]
        found.append(
            (
                request.request_received_ms,
                whole(line, "replay.input_length", replay.input_length, 1),
                max(1, whole(line, "output_tokens", request.output_tokens or 0)),
                hashes,
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


def _ended_request(line: Line) -> _Request | None:
    """The request of a row with a `request_end` event; None for any other row."""
    row = line.decode(_ROW)
    event = row.event or row
    if event.event_type != "request_end":
        return None
    if not bytes(event.request):
        raise TraceError(f"{line.place}: field 'request' is missing")
    try:
        return decode_json(_REQUEST, bytes(event.request), f"{line.place}: request", MAX_LINE_BYTES)
    except DecodeError as error:
        raise TraceError(str(error)) from None
