"""The router inside the native frontend, as the control plane calls it: one line of JSON each way.

The frontend answers one call at a time, in order. A call without an answer in time ends the
connection, because a later answer could not be told from the answer to a later call.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from typing import Any, cast

_TIMEOUT_S = 30.0
_READ_BYTES = 1 << 16


class FrontendGoneError(ConnectionError):
    """The frontend closed the connection, or did not answer in time."""


class RemoteRouter:
    """The calls of the control plane, each over the socket.

    Args:
        connection: The socket to the frontend.
        on_end: Called once, when the connection ended.
    """

    def __init__(self, connection: socket.socket, on_end: Callable[[], object]) -> None:
        connection.settimeout(_TIMEOUT_S)
        self._connection = connection
        self._on_end = on_end
        self._ended = False
        self._lock = threading.Lock()
        self._read = bytearray()

    def status(self) -> str:
        """Workers and their state, as JSON."""
        return self._text("status")

    def metrics(self) -> str:
        """The metrics of the router. The public port adds those of Dynamo."""
        return self._text("metrics")

    def observation(self) -> str:
        """Facts of the live page, as JSON."""
        return self._text("observation")

    def sample(self) -> str:
        """JSON of the outcomes since the last call and of the state of the pools."""
        return self._text("sample")

    def shadows(self) -> str | None:
        """Estimates of the shadows, as JSON; None without shadows."""
        return cast("str | None", self._call("shadows"))

    def curves(self) -> str:
        """The learned curves, as JSON."""
        return self._text("curves")

    def restore_curves(self, model: str, role: str, record_json: str) -> int:
        """Restore the curves of a pool; the number of workers restored."""
        return int(cast(int, self._call("restore_curves", model, role, record_json)))

    def routing(self) -> str:
        """JSON of the policy and the queue in force."""
        return self._text("routing")

    def set_routing(self, change_json: str, /) -> str:
        """Change policy and queue, all or nothing; returns the JSON of `routing` afterwards."""
        return self._text("set_routing", change_json)

    def set_figures(self, figures_json: str, /) -> None:
        """Report figures for the metrics page, given as a JSON object of numbers."""
        self._call("set_figures", figures_json)

    def set_parts(self, parts_json: str, /) -> None:
        """Report the states of the parts of the control plane."""
        self._call("set_parts", parts_json)

    def receipt(self, request_id: str, /) -> str | None:
        """The receipt of a decision, as JSON; None when no receipt has the id."""
        return cast("str | None", self._call("receipt", request_id))

    def _text(self, call: str, *arguments: str) -> str:
        return cast(str, self._call(call, *arguments))

    def _call(self, call: str, *arguments: str) -> object:
        """Ask the frontend.

        Raises:
            ValueError: The frontend refuses the call, with its reason.
            FrontendGoneError: There is no answer.
        """
        with self._lock:
            if self._ended:
                raise FrontendGoneError("the frontend has ended")
            try:
                request = json.dumps({"call": call, "arguments": arguments})
                self._connection.sendall(request.encode() + b"\n")
                answer: dict[str, Any] = json.loads(self._line())
            except (OSError, ValueError) as error:
                self._ended = True
                self._on_end()
                raise FrontendGoneError(f"no answer to {call}: {error}") from error
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer["value"]

    def _line(self) -> bytes:
        searched = 0
        while (end := self._read.find(b"\n", searched)) < 0:
            searched = len(self._read)
            part = self._connection.recv(_READ_BYTES)
            if not part:
                raise ConnectionError("the frontend closed the connection")
            self._read += part
        line = bytes(self._read[:end])
        del self._read[: end + 1]
        return line
