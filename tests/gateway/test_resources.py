"""Limits fit the resources of the process, and a full process goes on serving."""

import json
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.waiting import DEADLINE_S, wait_until

SERVER = """
import json, sys
from wardrop._core import Gateway

gateway = Gateway(sys.argv[1])
gateway.upsert_model(json.dumps({"name": "m", "block_size": 4, "context_length": 4096}))
gateway.upsert_worker(json.dumps({"model": "m", "role": "aggregated", "instance": 1}))
print(json.dumps({"port": gateway.start(), "status": json.loads(gateway.status())}), flush=True)
sys.stdin.read()
gateway.stop()
"""


@dataclass
class Process:
    """A gateway in a process of its own, with limits of its own."""

    pid: int
    port: int
    status: dict

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def metric(self, name: str) -> float:
        with socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE_S) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            text = b""
            while data := client.recv(65536):
                text += data
        lines = [line for line in text.decode().splitlines() if line.startswith(f"wardrop_{name}")]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@pytest.fixture
def limited(upstream) -> Iterator:
    """Start a gateway under a limit of file descriptors."""
    children: list[subprocess.Popen] = []

    def start(descriptors: int, hard: int | None = None, **config) -> Process:
        config = {"listen": "127.0.0.1:0", "upstreams": [upstream.url], **config}
        child = subprocess.Popen(
            [sys.executable, "-c", SERVER, json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=lambda: resource.setrlimit(
                resource.RLIMIT_NOFILE, (descriptors, hard or descriptors)
            ),
        )
        children.append(child)
        assert child.stdout
        started = json.loads(child.stdout.readline())
        return Process(child.pid, started["port"], started["status"])

    yield start
    for child in children:
        child.kill()
        child.communicate()


def ask(port: int) -> bytes:
    body = b'{"model":"m","prompt":[1,2,3,4]}'
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        got = b""
        while data := client.recv(65536):
            got += data
    return got


@pytest.mark.parametrize("descriptors", [128, 1024])
def test_more_idle_clients_than_descriptors_stop_nobody(limited, descriptors):
    """Idle connections give way to new clients, and a quarter of the descriptors stays free."""
    process = limited(descriptors)
    assert process.status["resources"]["descriptors"] == descriptors
    limit = process.status["limits"]["connections"]
    assert limit < descriptors * 3 // 4

    idle: list[socket.socket] = []

    def connect(count: int) -> None:
        address = ("127.0.0.1", process.port)
        idle.extend(socket.create_connection(address, timeout=DEADLINE_S) for _ in range(count))

    def evictions() -> float:
        try:
            return process.metric("client_evictions_total")
        except OSError:
            # The question itself was refused: no connection was idle yet.
            return 0

    def answers() -> bool:
        try:
            return ask(process.port).startswith(b"HTTP/1.1 200")
        except OSError:
            return False

    try:
        # A client is refused where the connections before it are not idle yet. So the places are
        # taken first, and each question for the metrics evicts a connection that is idle by then.
        connect(limit)
        wait_until(lambda: evictions() >= 1, "an idle connection")
        connect(descriptors + 76 - limit)
        wait_until(lambda: evictions() >= descriptors + 76 - limit)
        # The last of the idle clients may still be on their way through the backlog.
        wait_until(answers, "an answer for a new client")
        assert process.descriptors() <= descriptors * 3 // 4 + 32
    finally:
        for client in idle:
            client.close()


def test_soft_limit_is_raised_to_the_hard_one(limited):
    process = limited(64, hard=4096)
    assert process.status["resources"]["descriptors"] == 4096


def test_new_client_without_a_place_gets_503(limited, engines):
    process = limited(1024, limits={"connections": 4}, worker_threads=1)
    body = b'{"model":"m","prompt":[1,2,3,4]}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    busy = []
    for _ in range(4):
        busy.append(socket.create_connection(("127.0.0.1", process.port), timeout=DEADLINE_S))
        busy[-1].sendall(head + body)
        assert engines.arrived.acquire(timeout=DEADLINE_S)
    with socket.create_connection(("127.0.0.1", process.port), timeout=DEADLINE_S) as client:
        got = client.recv(65536)
    assert got.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in got
    assert b"too_many_connections" in got
    for _ in busy:
        engines.permits.release()
    for client in busy:
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.close()


def test_refused_client_that_has_sent_its_request_reads_the_whole_answer(limited, engines):
    """Unread bytes at the close would reset the connection, and a reset may discard the answer."""
    process = limited(1024, limits={"connections": 1}, worker_threads=1)
    body = b'{"model":"m","prompt":[1,2,3,4]}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", process.port), timeout=DEADLINE_S) as busy:
        busy.sendall(head + body)
        assert engines.arrived.acquire(timeout=DEADLINE_S)
        for _ in range(20):
            address = ("127.0.0.1", process.port)
            with socket.create_connection(address, timeout=DEADLINE_S) as client:
                client.sendall(head + body)
                got = b""
                while data := client.recv(65536):  # ConnectionResetError after a reset
                    got += data
            assert got.startswith(b"HTTP/1.1 503")
            assert got.endswith(b"}")
        engines.permits.release()
        assert busy.recv(65536).startswith(b"HTTP/1.1 200")


def test_refused_clients_that_stay_are_bounded(limited, engines):
    process = limited(1024, limits={"connections": 1}, worker_threads=1)
    body = b'{"model":"m","prompt":[1,2,3,4]}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", process.port), timeout=DEADLINE_S) as busy:
        busy.sendall(head + body)
        assert engines.arrived.acquire(timeout=DEADLINE_S)
        before = process.descriptors()
        stay = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(200)]
        for client in stay:
            client.settimeout(DEADLINE_S)
            assert client.recv(65536).startswith(b"HTTP/1.1 503")
            assert process.descriptors() <= before + 64 + 2
        # Clients that stay are closed after a while.
        wait_until(lambda: process.descriptors() <= before, "the end of the refused connections")
        for client in stay:
            client.close()


def test_descriptors_that_others_take_only_delay_new_clients(limited, upstream):
    """Other parts of the process take every descriptor: the accept loop waits and goes on."""
    taken = """
import os, sys, json, time
from wardrop._core import Gateway
gateway = Gateway(sys.argv[1])
print(json.dumps({"port": gateway.start(), "status": json.loads(gateway.status())}), flush=True)
files = []
sys.stdin.readline()
try:
    while True:
        files.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
print("taken", flush=True)
while '"} 0\\n' in gateway.metrics().partition("\\nwardrop_accept_errors_total{")[2][:40]:
    time.sleep(0.01)
for file in files:
    os.close(file)
print("free", flush=True)
sys.stdin.read()
"""
    config = {"listen": "127.0.0.1:0", "upstreams": [upstream.url]}
    with subprocess.Popen(
        [sys.executable, "-c", taken, json.dumps(config)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)),
    ) as child:
        assert child.stdin
        assert child.stdout
        port = json.loads(child.stdout.readline())["port"]
        child.stdin.write("take\n")
        child.stdin.flush()
        assert child.stdout.readline() == "taken\n"
        with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S) as waiting:
            waiting.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            assert child.stdout.readline() == "free\n"
            got = b""
            while data := waiting.recv(65536):
                got += data
        assert got.startswith(b"HTTP/1.1 200")
        assert child.poll() is None
        child.kill()
