"""The proxy misbehaves as told and counts it; the recorder reads what passes through it."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.chaos.recorder import Recording
from tests.chaos.severable import SeverableProxy
from tests.waiting import wait_until_async


@asynccontextmanager
async def echo(tap: Callable[[], Any] | None = None) -> AsyncIterator[SeverableProxy]:
    """A proxy in front of a server that returns each byte."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(4096):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = await SeverableProxy(("127.0.0.1", server.sockets[0].getsockname()[1]), tap).start()
    try:
        yield proxy
    finally:
        await proxy.stop()
        server.close()


@asynccontextmanager
async def dial(
    proxy: SeverableProxy,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client's connection, which is closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


def run(body: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(body, 60))


def test_bytes_pass_and_an_end_passes():
    async def body() -> None:
        async with echo() as proxy, dial(proxy) as (reader, writer):
            writer.write(b"x" * 100_000)
            writer.write_eof()
            assert await reader.read(-1) == b"x" * 100_000
            await wait_until_async(lambda: proxy.open_links == 0, "the end of the connection")

    run(body())


def test_cut_is_a_reset_and_is_counted():
    async def body() -> None:
        async with echo() as proxy, dial(proxy) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            assert proxy.cut() == 1
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
            assert proxy.cuts == 1

    run(body())


def test_silence_swallows_and_resume_delivers():
    async def body() -> None:
        async with echo() as proxy, dial(proxy) as (reader, writer):
            proxy.silence()
            writer.write(b"later")
            await wait_until_async(lambda: proxy.swallowed_bytes == 5, "the swallowed bytes")
            assert proxy.open_links == 1, "a half-open connection stays open"
            assert (
                writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
            )
            proxy.resume()
            assert await reader.readexactly(5) == b"later"

    run(body())


def test_slow_path_delays_and_counts():
    async def body() -> None:
        async with echo() as proxy, dial(proxy) as (reader, writer):
            proxy.bytes_per_s = 5_000.0
            before_s = asyncio.get_running_loop().time()
            writer.write(b"x" * 1_000)
            await reader.readexactly(1_000)
            # Both directions are slow: 2 × 1,000 bytes at 5,000 bytes a second.
            assert asyncio.get_running_loop().time() - before_s >= 0.39
            assert proxy.slowed_bytes == 2_000

    run(body())


def post(name: str, body: bytes, chunked: bool = False) -> bytes:
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\nX-Request-Id: {name}\r\n"
    if not chunked:
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    half = len(body) // 2
    parts = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (body[:half], body[half:], b""))
    return f"{head}transfer-encoding: chunked\r\n\r\n".encode() + parts


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_recorder_reads_ids_and_attempts(chunked: bool, step: int):
    recording = Recording()
    tap = recording.tap()
    with_ids = json.dumps({"prompt": "x", "nvext": {"token_data": [5, 6]}}).encode()
    wire = post("a", with_ids, chunked) + post("b", b'{"prompt": "y"}', chunked)
    wire += b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n" + post("a", with_ids, chunked)
    for at in range(0, len(wire), step):
        tap.sent(wire[at : at + step], float(at))
    assert recording.handed_on() == {"a": [5, 6]}
    first, second = recording.attempts["a"]
    assert first.sent_s <= second.sent_s
    assert [attempt.token_ids for attempt in recording.attempts["b"]] == [None]


def test_a_request_that_is_read_late_has_the_time_at_which_it_was_sent():
    recording = Recording()

    async def body() -> None:
        async with echo(recording.tap) as proxy, dial(proxy) as (_, writer):
            head, separator, rest = post("a", b'{"prompt": "x"}').partition(b"\r\n\r\n")
            proxy.silence()
            writer.write(head + separator)
            await wait_until_async(lambda: proxy.swallowed_bytes > 0, "the head to be kept back")
            before_s = time.monotonic()
            writer.write(rest)
            await writer.drain()
            # From here on, the router may have answered its client from elsewhere.
            answered_s = time.monotonic()
            proxy.resume()
            await wait_until_async(lambda: "a" in recording.attempts, "the request to be read")
            (attempt,) = recording.attempts["a"]
            assert before_s - 0.05 < attempt.sent_s < answered_s

    run(body())
