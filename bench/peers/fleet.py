"""A scripted fleet: workers that compute one prompt after another, and know their true load.

One HTTP server stands in for the frontends. The header of the pin names the worker. A worker
computes prompts in order of arrival at a fixed speed, and then decodes for a fixed time.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

_PIN = b"x-dynamo-worker-instance-id: "
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_FIRST = b'data: {"choices":[{"index":0,"text":"a","finish_reason":null}]}\n\n'
_LAST = b'data: {"choices":[{"index":0,"text":"b","finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@dataclass
class Worker:
    """One engine.

    Attributes:
        free_at_s: Time at which the prompts so far are computed.
        requests: Requests in flight.
    """

    free_at_s: float = 0.0
    requests: int = 0


@dataclass
class Fleet:
    """Workers behind one address.

    Attributes:
        workers: Engines by instance.
        prefill_tokens_per_s: Speed of one engine.
        decode_s: Time from the first to the last token.
    """

    workers: dict[int, Worker]
    prefill_tokens_per_s: float
    decode_s: float
    _server: asyncio.Server | None = field(default=None, init=False)

    async def start(self) -> str:
        """Serve on a free port of the loopback; return the address."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def backlog_s(self) -> list[float]:
        """Seconds of prefill that wait at each worker now."""
        now_s = asyncio.get_running_loop().time()
        return [max(0.0, worker.free_at_s - now_s) for worker in self.workers.values()]

    async def stop(self) -> None:
        """Close the listener."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                await self._answer(int(head.split(_PIN)[1].split(b"\r\n")[0]), body, writer)
        except (asyncio.IncompleteReadError, ConnectionError, IndexError):
            writer.close()
        except asyncio.CancelledError:
            # The loop ends with connections open, and asyncio prints cancelled tasks of a server.
            return

    async def _answer(self, instance: int, body: bytes, writer: asyncio.StreamWriter) -> None:
        worker = self.workers[instance]
        tokens = len(json.loads(body)["prompt"])
        now_s = asyncio.get_running_loop().time()
        worker.free_at_s = max(worker.free_at_s, now_s) + tokens / self.prefill_tokens_per_s
        worker.requests += 1
        try:
            await asyncio.sleep(worker.free_at_s - now_s)
            writer.write(_HEAD + _chunk(_FIRST))
            await writer.drain()
            await asyncio.sleep(self.decode_s)
            writer.write(_chunk(_LAST) + b"0\r\n\r\n")
            await writer.drain()
        finally:
            worker.requests -= 1


def _chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"
