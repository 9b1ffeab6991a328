"""A request goes to an upstream a second time only while its client has no byte of an answer.

A scripted upstream breaks off its first answer at each place where its meaning changes. It gives a
whole answer with other text to the second attempt. Frontends and workers are upstreams in turn.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from tests.gateway.conftest import OK, Running, Seen, Upstream
from tests.waiting import DEADLINE_S, wait_until

MODELS = b'HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n{"data":[{"id":"m"}]}'
RESET = struct.pack("ii", 1, 0)  # linger for 0 s: close() sends RST instead of FIN


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def stream_pieces(text: bytes) -> list[bytes]:
    """A streamed answer; a cut is tried before, inside and behind each piece."""
    events = [b'data: {"choices":[{"index":0,"text":"%s%d"}]}\n\n' % (text, n) for n in (1, 2)]
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
    head += b"transfer-encoding: chunked\r\n\r\n"
    done = chunk(b"data: [DONE]\n\n")
    return [head, chunk(b": wait\n\n"), *map(chunk, events), done, b"0\r\n\r\n"]


def whole_pieces(text: bytes) -> list[bytes]:
    """An answer in one piece."""
    body = b'{"choices":[{"index":0,"text":"%s1 %s2"}]}' % (text, text)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return [head % len(body), body]


def cuts(pieces: list[bytes]) -> list[int]:
    """Lengths of the broken answers: before, inside and behind each piece, but not the whole."""
    found, at = [], 0
    for piece in pieces:
        found += [at, at + len(piece) // 2, at + len(piece) - 3]
        at += len(piece)
    return found


def first_use(pieces: Callable[[bytes], list[bytes]]) -> int:
    """Bytes of an answer from which on its client is given something of it."""
    all_pieces = pieces(b"first")
    if pieces is whole_pieces:
        return len(all_pieces[0]) + 1
    return sum(map(len, all_pieces[:3])) - len(b"\r\n")


@dataclass
class Breaking:
    """Upstreams of which the first prompt's answer breaks off behind `cut` bytes."""

    pieces: Callable[[bytes], list[bytes]]
    cut: int
    has_reset: bool
    upstreams: list[Upstream]
    sent: int = 0
    armed: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for upstream in self.upstreams:
            upstream.script = self._answer

    def _answer(self, seen: Seen, conn: socket.socket) -> bytes | None:
        with self._lock:
            if seen.head.startswith(b"GET"):
                return MODELS  # to a probe of a frontend
            if not self.armed:
                return OK
            self.sent += 1
            is_first = self.sent == 1
        if not is_first:
            return b"".join(self.pieces(b"second"))
        conn.sendall(b"".join(self.pieces(b"first"))[: self.cut])
        if self.has_reset:
            conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return None


@pytest.fixture
def pair() -> Iterator[list[Upstream]]:
    upstreams = [Upstream(), Upstream()]
    yield upstreams
    for upstream in upstreams:
        upstream.close()


def fetch(running: Running, is_streamed: bool) -> bytes:
    """Everything that the client gets, to the end of its connection."""
    body = json.dumps({"model": "m", "prompt": [1, 2, 3, 4], "stream": is_streamed}).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    got = b""
    with socket.create_connection(("127.0.0.1", running.port), timeout=DEADLINE_S) as client:
        client.sendall(head.encode() + body)
        try:
            while data := client.recv(65536):
                got += data
        except ConnectionResetError:
            pass
    return got


@pytest.mark.parametrize("reused", [False, True], ids=["new", "reused"])
@pytest.mark.parametrize("has_reset", [False, True], ids=["fin", "rst"])
@pytest.mark.parametrize("pieces", [stream_pieces, whole_pieces])
@pytest.mark.parametrize("kind", ["frontends", "workers"])
def test_answer_that_breaks_off_is_asked_for_again_only_before_its_first_byte(
    serve, pair, kind, pieces, has_reset, reused
):
    is_streamed = pieces is stream_pieces
    for cut in cuts(pieces(b"first")):
        breaking = Breaking(pieces, cut, has_reset, pair)
        running: Running = serve(worker_threads=1)
        if kind == "workers":
            workers = [{"instance": at + 1, "url": one.url} for at, one in enumerate(pair)]
            running.gateway.set_workers(json.dumps(workers))
        else:
            running.gateway.set_upstreams([one.url for one in pair])
        if reused:
            for number in range(6):
                assert running.complete([number])[0] == 200
        breaking.armed = True
        got = fetch(running, is_streamed)
        where = f"cut behind {cut} bytes: {got!r}"
        if not has_reset:
            # A reset may discard bytes that the gateway has not read.
            assert breaking.sent == (1 if cut >= first_use(pieces) else 2), where
        if breaking.sent == 1:
            assert got.startswith(b"HTTP/1.1 200"), where
            assert b"second" not in got, where
            if is_streamed and b"[DONE]" not in got:
                assert b'"upstream_broken"' in got, where
                assert b"incomplete" in got, where
        else:
            assert breaking.sent == 2, where
            assert b"first" not in got, where
            assert b"second1" in got, where
            assert b"second2" in got, where
            assert b"error" not in got, where
        wait_until(lambda running=running: running.metric("requests_in_flight") == 0)
        assert running.metric("worker_load") == 0
        running.gateway.stop()


def test_request_of_another_api_that_may_not_run_twice_is_sent_once(upstream, serve):
    """A connection that breaks may mean that the request ran, so only idempotent ones go again."""
    running = serve(worker_threads=1, routes={"extra": ["/v1/jobs"]})
    for method, sends in (("POST", 1), ("GET", 2), ("DELETE", 2)):
        upstream.script = lambda seen, conn: OK
        assert running.request("GET", "/v1/models")[0] == 200
        upstream.seen.clear()
        upstream.script = lambda seen, conn: None
        status, _, body = running.request(method, "/v1/jobs")
        assert (status, json.loads(body)["error"]["code"]) == (502, "upstream_broken")
        assert len(upstream.seen) == sends, method
