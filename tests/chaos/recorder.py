"""What the router sent to its frontends, read off the wire between the two processes.

A tap of the proxy in front of a frontend parses HTTP/1.1 requests. It keeps, per request id, the
token ids that the router handed on and the attempts that it made.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.I)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.I)
_REQUEST_ID = re.compile(rb"\r\nx-request-id: *([^\r\n]+)", re.I)


@dataclass
class Attempt:
    """One forwarded request.

    Attributes:
        token_ids: The ids in `nvext.token_data`; None where the router handed none on.
        sent_s: Monotonic time at which the whole request was at the proxy's side of the wire.
    """

    token_ids: list[int] | None
    sent_s: float


@dataclass
class Recording:
    """All attempts by request id, in the order in which they were sent."""

    attempts: dict[str, list[Attempt]] = field(default_factory=lambda: defaultdict(list))

    def tap(self) -> RequestTap:
        """An observer for one connection."""
        return RequestTap(self)

    def handed_on(self) -> dict[str, list[int]]:
        """Token ids by request id, of the requests that carried ids."""
        return {
            name: attempt.token_ids
            for name, attempts in self.attempts.items()
            for attempt in attempts
            if attempt.token_ids is not None
        }


class RequestTap:
    """Parses the requests of one connection; HTTP/1.1 without pipelining."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._pending = b""

    def sent(self, data: bytes, arrived_s: float) -> None:
        """Bytes from the router, and the monotonic time at which the last of them came."""
        self._pending += data
        while (parsed := _take_request(self._pending)) is not None:
            head, body, self._pending = parsed
            named = _REQUEST_ID.search(head)
            if named is None or not body:
                continue
            attempt = Attempt(_token_ids(body), arrived_s)
            self._recording.attempts[named[1].decode(errors="replace")].append(attempt)


def _take_request(pending: bytes) -> tuple[bytes, bytes, bytes] | None:
    """Head, body and rest when `pending` holds a whole request."""
    head, separator, rest = pending.partition(b"\r\n\r\n")
    if not separator:
        return None
    if _CHUNKED.search(head):
        body = b""
        while True:
            size_text, line_end, rest = rest.partition(b"\r\n")
            if not line_end:
                return None
            size = int(size_text.split(b";")[0], 16)
            if len(rest) < size + 2:
                return None
            body, rest = body + rest[:size], rest[size + 2 :]
            if size == 0:
                return head, body, rest
    length = _LENGTH.search(head)
    size = int(length[1]) if length else 0
    return None if len(rest) < size else (head, rest[:size], rest[size:])


def _token_ids(body: bytes) -> list[int] | None:
    try:
        parsed: Any = json.loads(body)
        ids = parsed["nvext"]["token_data"]
    except (ValueError, KeyError, TypeError):
        return None
    return ids if isinstance(ids, list) else None
