"""A scripted upstream: says on demand what a real frontend says only when something is broken."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.gateway.held import Engines

from wardrop._core import Gateway

OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"


@dataclass
class Seen:
    """One request as it arrived, byte for byte."""

    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b": ")
            if key.lower() == name.encode():
                return value.decode()
        return None


Script = Callable[["Seen", socket.socket], bytes | None]


@dataclass
class Upstream:
    """Answers each request with what `script` returns; None closes the connection."""

    script: Script = lambda seen, conn: OK
    seen: list[Seen] = field(default_factory=list)
    closed_early: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.stopping = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.stopping:
            try:
                conn, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(conn,), daemon=True).start()

    def _serve(self, conn: socket.socket) -> None:
        buffer = b""
        with conn:
            while True:
                try:
                    seen, buffer = self._read(conn, buffer)
                    if seen is None:
                        return
                    self.seen.append(seen)
                    answer = self.script(seen, conn)
                    if answer is None:
                        return
                    conn.sendall(answer)
                except OSError:
                    self.closed_early.set()
                    return

    @staticmethod
    def _read(conn: socket.socket, buffer: bytes) -> tuple[Seen | None, bytes]:
        while b"\r\n\r\n" not in buffer:
            data = conn.recv(65536)
            if not data:
                return None, b""
            buffer += data
        head, _, rest = buffer.partition(b"\r\n\r\n")
        seen = Seen(head, b"")
        if seen.header("transfer-encoding") == "chunked":
            while not rest.endswith(b"0\r\n\r\n"):
                data = conn.recv(65536)
                if not data:
                    return None, b""
                rest += data
            return Seen(head, rest), b""
        length = int(seen.header("content-length") or 0)
        while len(rest) < length:
            data = conn.recv(65536)
            if not data:
                return None, b""
            rest += data
        return Seen(head, rest[:length]), rest[length:]

    def close(self) -> None:
        self.stopping = True
        self.listener.close()


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    up = Upstream()
    yield up
    up.close()


@pytest.fixture
def engines(upstream: Upstream) -> Iterator[Engines]:
    """In place of `upstream`'s answers: engines that hold theirs until they are permitted."""
    held = Engines()
    upstream.script = held
    yield held
    for _ in range(200):
        held.permits.release()


@dataclass
class Running:
    """A gateway that serves, with a client."""

    gateway: Gateway
    port: int

    def request(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        conn = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        conn.request(method, path, data, {"content-type": "application/json", **(headers or {})})
        response = conn.getresponse()
        out = response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
        conn.close()
        return out

    def complete(self, tokens: list[int], **fields: Any) -> tuple[int, dict[str, str], bytes]:
        headers = fields.pop("headers", None)
        return self.request(
            "POST", "/v1/completions", {"model": "m", "prompt": tokens, **fields}, headers
        )

    def samples(self, name: str, **labels: str) -> list[float]:
        """Values of the samples of a metric that carry these labels."""
        found = []
        for line in self.gateway.metrics().splitlines():
            key, _, value = line.rpartition(" ")
            if key.partition("{")[0] == f"wardrop_{name}" and all(
                f'{k}="{v}"' in key for k, v in labels.items()
            ):
                found.append(float(value))
        return found

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that carry these labels: 0 when there are none."""
        return sum(self.samples(name, **labels))

    def sample(self, name: str, **labels: str) -> float:
        """Value of the only sample of a metric that carries these labels."""
        (value,) = self.samples(name, **labels)
        return value

    def status(self) -> dict[str, Any]:
        return json.loads(self.gateway.status())

    def workers(self, role: str = "aggregated") -> dict[int, dict[str, Any]]:
        for pool in self.status()["models"][0]["pools"]:
            if pool["role"] == role:
                return {worker["instance"]: worker for worker in pool["workers"]}
        return {}


@pytest.fixture
def serve(upstream: Upstream) -> Iterator[Callable[..., Running]]:
    """Start a gateway in front of the scripted upstream, with model `m` and some workers."""
    running: list[Gateway] = []

    def start(workers: tuple[int, ...] = (1, 2), **config: Any) -> Running:
        base: dict[str, Any] = {"listen": "127.0.0.1:0", "upstreams": [upstream.url], **config}
        gateway = Gateway(json.dumps(base))
        running.append(gateway)
        gateway.upsert_model(json.dumps({"name": "m", "block_size": 4, "context_length": 4096}))
        for instance in workers:
            gateway.upsert_worker(
                json.dumps({"model": "m", "role": "aggregated", "instance": instance})
            )
        return Running(gateway, gateway.start())

    yield start
    for gateway in running:
        gateway.stop()


@pytest.fixture
def early_upstream() -> Iterator[Callable[[bytes], str]]:
    """Upstreams that answer after the first bytes of a request, and read no more."""
    listeners: list[socket.socket] = []
    stop = threading.Event()

    def answer(conn: socket.socket, head: bytes) -> None:
        # An error in a thread fails whichever test runs when pytest notices it.
        with conn, contextlib.suppress(OSError):
            conn.recv(100)
            conn.sendall(head)
            stop.wait()

    def accept(listener: socket.socket, head: bytes) -> None:
        while not stop.is_set():
            try:
                conn, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(conn, head), daemon=True).start()

    def start(head: bytes) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=accept, args=(listener, head), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    stop.set()
    for listener in listeners:
        listener.close()
