"""A request that moves to another frontend before its first byte is no second execution.

The frontend that fell silent may still answer when it wakes. Its text reaches the proxy in front of
it, and no client. A chaos run whose machine stalls shows many of these answers.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from dataclasses import replace

from tests.chaos.oracle import Exchange, judge_attempts
from tests.chaos.recorder import Recording
from tests.chaos.severable import SeverableProxy
from tests.gateway.conftest import Seen, Upstream
from tests.waiting import DEADLINE_S, wait_until_async

from wardrop._core import Gateway

MODELS = b'{"data":[{"id":"m"}]}'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
TEXT = b'data: {"choices":[{"index":0,"text":"%s"}]}\n\n'
NAME = "chaos-1-1"


class Pair:
    """Two frontends: the first one that gets a prompt falls silent until it is woken."""

    def __init__(self) -> None:
        self.frontends = [Upstream(), Upstream()]
        self.sleeper: Upstream | None = None
        self.wake = threading.Event()
        self.late_text_sent = threading.Event()
        self._lock = threading.Lock()
        for frontend in self.frontends:
            frontend.script = lambda seen, conn, own=frontend: self._answer(own, seen, conn)

    def _answer(self, own: Upstream, seen: Seen, conn: socket.socket) -> bytes | None:
        with self._lock:
            if self.sleeper is None and seen.head.startswith(b"POST"):
                self.sleeper = own
        if own is self.sleeper:
            self.wake.wait(DEADLINE_S)
        if seen.head.startswith(b"GET"):
            head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(MODELS)
            return head + MODELS
        conn.sendall(HEAD + TEXT % (b"late" if own is self.sleeper else b"in time"))
        if own is self.sleeper:
            self.late_text_sent.set()
        return None

    def close(self) -> None:
        self.wake.set()
        for frontend in self.frontends:
            frontend.close()


def ask(port: int) -> tuple[bytes, Exchange]:
    """One streamed request, with the time of its first byte as a client sees it."""
    sent_s = time.monotonic()
    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
    body = json.dumps({"model": "m", "prompt": [1, 2, 3, 4], "stream": True})
    conn.request("POST", "/v1/completions", body, {"x-request-id": NAME})
    answer = conn.getresponse()
    first = answer.read(1)
    first_byte_s = time.monotonic()
    text = first + answer.read()
    conn.close()
    exchange = Exchange(
        request_id=NAME,
        sent_s=sent_s,
        ended_s=time.monotonic(),
        status=answer.status,
        asked_tokens=1,
        got_tokens=1,
        done=True,
        error=None,
        first_byte_s=first_byte_s,
        silence_s=0.0,
    )
    return text, exchange


def test_text_of_an_attempt_that_was_given_up_is_no_second_execution():
    async def body() -> None:
        pair, recording = Pair(), Recording()
        proxies = [
            await SeverableProxy(
                ("127.0.0.1", frontend.listener.getsockname()[1]), recording.tap
            ).start()
            for frontend in pair.frontends
        ]
        config = {
            "listen": "127.0.0.1:0",
            "upstreams": [f"http://127.0.0.1:{proxy.port}" for proxy in proxies],
            "upstream": {"probe_interval_ms": 50},
        }
        gateway = Gateway(json.dumps(config))
        gateway.upsert_model(json.dumps({"name": "m", "block_size": 4, "context_length": 4096}))
        try:
            port = await asyncio.to_thread(gateway.start)
            text, exchange = await asyncio.to_thread(ask, port)
            assert b"in time" in text
            assert b"late" not in text
            pair.wake.set()
            await wait_until_async(pair.late_text_sent.is_set, "the text of the given-up attempt")
            attempts = recording.attempts[NAME]
            assert len(attempts) == 2
            assert judge_attempts(recording.attempts, [exchange]) == []
            # The same wire with a client that had its first byte between the two attempts.
            early = replace(exchange, first_byte_s=attempts[0].sent_s)
            found = judge_attempts(recording.attempts, [early])
            assert [violation.rule for violation in found] == ["duplicate"]
        finally:
            pair.close()
            await asyncio.to_thread(gateway.stop)
            for proxy in proxies:
                await proxy.stop()

    asyncio.run(asyncio.wait_for(body(), DEADLINE_S))
