"""A small HTTP server with known timing, to hold the driver's clockwork to the truth."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest


@dataclass
class TokenServer:
    """Streams `max_tokens` tokens per request: the first after `first_s`, then one per `gap_s`.

    A body may carry `fail` (an HTTP status), `hang` (never answer) or `cut` (close in mid-stream).
    """

    first_s: float = 0.05
    gap_s: float = 0.02
    arrivals: list[tuple[float, dict[str, object]]] = field(default_factory=list)
    connections: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    port: int = 0
    held: int = 0
    """Answers wait until so many requests are in flight."""
    full: asyncio.Event = field(default_factory=asyncio.Event)

    def hold_until(self, in_flight: int) -> None:
        """Let no answer begin before `in_flight` requests wait for theirs."""
        self.held = in_flight

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/completions"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split()[0])
        body = json.loads(await reader.readexactly(length))
        self.arrivals.append((asyncio.get_running_loop().time(), body))
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.in_flight >= self.held:
            self.full.set()
        try:
            await self.full.wait()
            return await self._answer(writer, body)
        finally:
            self.in_flight -= 1

    async def _answer(self, writer: asyncio.StreamWriter, body: dict[str, object]) -> bool:
        if body.get("hang"):
            await asyncio.Event().wait()  # until the client or the test ends it
        if status := body.get("fail"):
            text = b'{"error":{"message":"no"}}'
            head = f"HTTP/1.1 {status} No\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(text)}\r\n\r\n".encode() + text)
            return True
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        tokens = int(str(body["max_tokens"]))
        for number in range(tokens):
            await asyncio.sleep(self.gap_s if number else self.first_s)
            if body.get("cut"):
                return False
            chunk = {
                "choices": [{"text": "x"}],
                "nvext": {"worker_id": {"prefill_worker_id": 2**63 + 1, "decode_worker_id": 7}},
            }
            self._event(writer, json.dumps(chunk))
        self._event(writer, json.dumps({"choices": [{"text": "", "finish_reason": "length"}]}))
        usage = {
            "prompt_tokens": 10,
            "completion_tokens": tokens,
            "prompt_tokens_details": {"cached_tokens": 4},
        }
        self._event(writer, json.dumps({"choices": [], "usage": usage}))
        self._event(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        return True

    @staticmethod
    def _event(writer: asyncio.StreamWriter, data: str) -> None:
        line = f"data: {data}\n\n".encode()
        writer.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")


@pytest.fixture
def token_server() -> Iterator[TokenServer]:
    server = TokenServer()
    loop = asyncio.new_event_loop()
    started = threading.Event()

    async def listen() -> asyncio.Server:
        listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
        server.port = listener.sockets[0].getsockname()[1]
        started.set()
        return listener

    async def close(listener: asyncio.Server) -> None:
        listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def run() -> None:
        listener = loop.run_until_complete(listen())
        loop.run_forever()
        loop.run_until_complete(close(listener))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    assert started.wait(5)
    yield server
    loop.call_soon_threadsafe(loop.stop)
    thread.join(5)
