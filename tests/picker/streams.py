"""A gateway's side of external processing: one stream for each request, with every answer kept."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.service.ext_proc.v3 import external_processor_pb2 as messages
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as services
from google.protobuf import struct_pb2
from tests.picker.processes import DESTINATION

DUPLEX = 4
"""Number of FULL_DUPLEX_STREAMED."""


def header_map(headers: dict[str, str]) -> base_pb2.HeaderMap:
    values = [
        base_pb2.HeaderValue(key=key, raw_value=value.encode()) for key, value in headers.items()
    ]
    return base_pb2.HeaderMap(headers=values)


@dataclass
class Decision:
    """The answer to the headers of a request."""

    headers: dict[str, str]
    removed: list[str]
    metadata: dict[str, Any]

    @property
    def address(self) -> str:
        """The destination, which header and metadata must name alike."""
        address = self.headers[DESTINATION]
        assert self.metadata == {"envoy.lb": {DESTINATION: address}}
        return address


@dataclass
class Refused:
    """An answer in place of a worker."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Stream:
    """One stream. `None` in the outbox closes the gateway's side."""

    channel: grpc.Channel
    modes: tuple[int, int] = (DUPLEX, DUPLEX)
    outbox: queue.SimpleQueue[Any] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        self.call = services.ExternalProcessorStub(self.channel).Process(self._messages())

    def _messages(self) -> Iterator[Any]:
        while (message := self.outbox.get()) is not None:
            yield message

    def send(self, **fields: Any) -> None:
        self.outbox.put(messages.ProcessingRequest(**fields))

    def request(
        self,
        headers: dict[str, str] | None = None,
        *,
        end: bool = False,
        subset: Any = None,
        path: str = "/v1/completions",
        method: str = "POST",
    ) -> None:
        """Send the headers of a request."""
        every = {":method": method, ":path": path, **(headers or {})}
        context = base_pb2.Metadata()
        if subset is not None:
            inner = struct_pb2.Struct()
            inner.update({"x-gateway-destination-endpoint-subset": subset})
            context.filter_metadata["envoy.lb.subset_hint"].CopyFrom(inner)
        config = messages.ProtocolConfiguration()
        config.request_body_mode, config.response_body_mode = self.modes  # type: ignore[assignment]
        self.send(
            request_headers=messages.HttpHeaders(headers=header_map(every), end_of_stream=end),
            metadata_context=context,
            protocol_config=config,
        )

    def body(self, body: bytes, *, end: bool = True, piece: int = 60_000) -> None:
        """Send a body in pieces."""
        pieces = [body[at : at + piece] for at in range(0, len(body), piece)] or [b""]
        for number, part in enumerate(pieces, 1):
            last = end and number == len(pieces)
            self.send(request_body=messages.HttpBody(body=part, end_of_stream=last))

    def trailers(self) -> None:
        self.send(request_trailers=messages.HttpTrailers(trailers=header_map({"x-sum": "1"})))

    def answer(self, status: int = 200, headers: dict[str, str] | None = None, **more: Any) -> None:
        """Send the headers of an answer."""
        every = {":status": str(status), "x-envoy-upstream-service-time": "1", **(headers or {})}
        fields = {key: more.pop(key) for key in ("end_of_stream",) if key in more}
        self.send(
            response_headers=messages.HttpHeaders(headers=header_map(every), **fields), **more
        )

    def answer_body(self, body: bytes, end: bool = False) -> None:
        self.send(response_body=messages.HttpBody(body=body, end_of_stream=end))

    def next(self) -> Any:
        """The next answer of the picker."""
        return next(self.call)

    def decision(self) -> Decision | Refused:
        """The answer to the headers."""
        answer = self.next()
        if answer.WhichOneof("response") == "immediate_response":
            immediate = answer.immediate_response
            return Refused(immediate.status.code, _set(immediate.headers), immediate.body)
        assert answer.WhichOneof("response") in ("request_headers", "request_body"), answer
        response = getattr(answer, answer.WhichOneof("response")).response
        metadata = _plain(answer.dynamic_metadata)
        mutation = response.header_mutation
        return Decision(_set(mutation), list(mutation.remove_headers), metadata)

    def request_body(self) -> bytes:
        """The request body that comes back, up to its end."""
        body = b""
        while True:
            piece = self.next().request_body.response.body_mutation.streamed_response
            assert len(piece.body) <= 64 << 10
            body += piece.body
            if piece.end_of_stream:
                return body

    def close(self) -> None:
        """Close the gateway's side and wait for the end."""
        self.outbox.put(None)
        for _ in self.call:
            pass

    def cancel(self) -> None:
        """Reset the stream, as a gateway does when the client left."""
        self.outbox.put(None)
        self.call.cancel()


def _set(mutation: Any) -> dict[str, str]:
    for option in mutation.set_headers:
        assert option.append_action == base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
        assert not option.header.value
    return {option.header.key: option.header.raw_value.decode() for option in mutation.set_headers}


def _plain(value: Any) -> Any:
    if isinstance(value, struct_pb2.Struct):
        return {key: _plain(item) for key, item in value.items()}
    return value
