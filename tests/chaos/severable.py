"""A TCP proxy on the loopback that can be cut, silenced and slowed while connections are open.

The kernel of a test machine may lack `netem`. This proxy stands between two processes and does what
a broken network does: a reset, a half-open connection, a slow path.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

_CHUNK_BYTES = 16_384
_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: close() sends RST instead of FIN
_LAST_DATA_RECEIVED = 52
"""Offset of `tcpi_last_data_recv`, in ms, in Linux's `struct tcp_info`."""
_KERNEL_TICK_S = 0.01
"""The kernel counts that time in ticks of up to 10 ms."""


class Tap(Protocol):
    """An observer of what the client of one connection sends."""

    def sent(self, data: bytes, arrived_s: float) -> None:
        """Bytes that the proxy has read, which it may keep back or lose.

        Args:
            data: The bytes.
            arrived_s: Monotonic time at which the connection's last bytes reached the kernel.
        """


def last_arrival_s(writer: asyncio.StreamWriter) -> float:
    """Monotonic time at which the last bytes from a connection's peer reached the kernel.

    An event loop that stood still, or a proxy that kept a connection back, reads bytes long after
    they came. Their peer may have given them up and sent them elsewhere meanwhile. So the time of
    reading says nothing about the order in which a router sent two attempts.

    The result may be 20 ms early, two ticks of the kernel, and is never late.
    """
    now_s = time.monotonic()
    raw = writer.get_extra_info("socket")
    try:
        info = raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECEIVED + 4)
    except OSError:
        return now_s  # closed meanwhile: nothing better is known
    (silence_ms,) = struct.unpack_from("=I", info, _LAST_DATA_RECEIVED)
    return now_s - silence_ms / 1e3 - _KERNEL_TICK_S


@dataclass(eq=False)
class Link:
    """One proxied connection: the client's side, the target's side, and an optional observer."""

    client: asyncio.StreamWriter
    target: asyncio.StreamWriter
    tap: Tap | None
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """Close both sides with RST."""
        for writer in (self.client, self.target):
            raw = writer.get_extra_info("socket")
            if raw is not None and not writer.is_closing():
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            writer.transport.abort()


class SeverableProxy:
    """Forwards connections to a target until it is told to misbehave.

    Args:
        target: Host and port behind the proxy.
        tap: Makes an observer for each connection.

    Attributes:
        cuts: Connections that were reset.
        swallowed_bytes: Bytes that arrived while the proxy was silent.
        slowed_bytes: Bytes that were delayed.
    """

    def __init__(self, target: tuple[str, int], tap: Callable[[], Tap] | None = None) -> None:
        self.target = target
        self.port = 0
        self.cuts = 0
        self.swallowed_bytes = 0
        self.slowed_bytes = 0
        self.bytes_per_s: float | None = None
        self._tap = tap
        self._links: set[Link] = set()
        self._loud = asyncio.Event()
        self._loud.set()
        self._server: asyncio.Server | None = None

    async def start(self) -> SeverableProxy:
        """Listen on a free port of the loopback."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._server is not None:
            self._server.close()
        for link in list(self._links):
            link.reset()
            for task in link.tasks:
                task.cancel()
        while self._links:
            await asyncio.sleep(0)

    @property
    def open_links(self) -> int:
        """Connections that are open now."""
        return len(self._links)

    def cut(self) -> int:
        """Reset every open connection; return their number."""
        links = list(self._links)
        for link in links:
            link.reset()
        self.cuts += len(links)
        return len(links)

    def silence(self) -> None:
        """Accept connections and bytes, forward nothing, close nothing."""
        self._loud.clear()

    def resume(self) -> None:
        """Forward again, beginning with the bytes that arrived during the silence."""
        self._loud.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, far_writer, self._tap() if self._tap else None)
        self._links.add(link)
        tap = link.tap

        def seen(data: bytes) -> None:
            if tap is not None:
                tap.sent(data, last_arrival_s(writer))

        link.tasks = [
            asyncio.create_task(self._pump(reader, far_writer, seen if tap else None)),
            asyncio.create_task(self._pump(far_reader, writer, None)),
        ]
        try:
            await asyncio.gather(*link.tasks)
        except (OSError, asyncio.CancelledError):
            link.reset()
            for task in link.tasks:
                task.cancel()
        finally:
            self._links.discard(link)
            for side in (writer, far_writer):
                if not side.is_closing():
                    side.close()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        seen: Callable[[bytes], None] | None,
    ) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            if seen is not None:
                seen(data)
            if not self._loud.is_set():
                self.swallowed_bytes += len(data)
                await self._loud.wait()
            if self.bytes_per_s is not None:
                self.slowed_bytes += len(data)
                await asyncio.sleep(len(data) / self.bytes_per_s)
            if writer.is_closing():
                return  # the connection was cut while the bytes waited here
            writer.write(data)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
