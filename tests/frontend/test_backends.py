"""Discovery in etcd, events and requests over NATS: real servers, workers and frontend."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.frontend.native import cached_tokens, served_by
from tests.frontend.test_live import prompt
from tests.live.client import Answer, Metrics, get, post
from tests.live.test_discovery_backends import etcd
from tests.waiting import wait_until

from wardrop.dynamo.child_process import ChildProcess, stop_all
from wardrop.dynamo.fleet_commands import dynamo_environment
from wardrop.dynamo.model_folder import model_folder
from wardrop.dynamo.ports import free_port

__all__ = ["etcd"]

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network", "binary")]

MODEL = "tiny"
BLOCK_SIZE = 16


@pytest.fixture
def nats(private_network: None, tmp_path: Path) -> Iterator[str]:
    binary = shutil.which("nats-server")
    if binary is None:
        pytest.skip("NO NATS: install it (Debian: apt-get install nats-server) to run this test")
    port = free_port()
    command = [binary, "--addr", "127.0.0.1", "--port", str(port), "--jetstream"]
    command += ["--store_dir", str(tmp_path / "nats")]
    child = ChildProcess("nats", command, dict(os.environ), tmp_path / "nats.log")

    def listens() -> bool:
        assert child.exit_code is None, child.tail()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, "the NATS server")
        yield f"nats://127.0.0.1:{port}"
    finally:
        stop_all([child])


@dataclass
class Deployment:
    """Two mock workers and a native frontend under one environment."""

    url: str
    children: list[ChildProcess]

    def metrics(self) -> Metrics:
        return Metrics(get(self.url, "/metrics").body.decode())

    def complete(self, tokens: list[int]) -> Answer:
        body = {"model": MODEL, "prompt": tokens, "max_tokens": 2}
        return post(self.url, "/v1/completions", body | {"nvext": {"extra_fields": ["worker_id"]}})


def deploy(environment: Mapping[str, str], home: Path) -> Deployment:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("DYN_", "WARDROP_"))}
    full = {**inherited, **dynamo_environment(home / "store"), **environment}
    worker = [sys.executable, "-m", "dynamo.mocker", "--model-path", str(model_folder())]
    worker += ["--model-name", MODEL, "--block-size", str(BLOCK_SIZE), "--num-workers", "2"]
    worker += ["--num-gpu-blocks-override", "1024", "--speedup-ratio", "20"]
    port = free_port()
    frontend = [sys.executable, "-m", "wardrop.frontend", "--http-host", "127.0.0.1"]
    frontend += ["--http-port", str(port), "--wardrop-policy", "dynamo"]
    children = [
        ChildProcess("workers", worker, full | {"DYN_SYSTEM_PORT": "0"}, home / "workers.log"),
        ChildProcess("native", frontend, full, home / "native.log"),
    ]
    return Deployment(f"http://127.0.0.1:{port}", children)


def check(environment: Mapping[str, str], home: Path) -> None:
    """Workers are found, a prompt returns to its blocks, and workers that end are forgotten."""
    deployment = deploy(environment, home)
    workers, native = deployment.children

    def available() -> float:
        for child in deployment.children:
            assert child.exit_code is None or child is workers, child.tail()
        try:
            return deployment.metrics().total("wardrop_worker_available")
        except OSError:
            return -1.0

    try:
        wait_until(lambda: available() == 2, f"two workers; log:\n{native.tail()}")
        wait_until(lambda: deployment.complete(prompt(1)).status == 200, "the model")
        first = deployment.complete(prompt(1))
        worker = served_by(first)[1]
        blocks = len(prompt(1)) // BLOCK_SIZE

        def held() -> float:
            metrics = deployment.metrics()
            return metrics.total("wardrop_worker_held_blocks", worker_id=str(worker))

        wait_until(lambda: held() >= blocks, "the events of its blocks")
        again = deployment.complete(prompt(1))
        assert served_by(again)[1] == worker
        assert cached_tokens(again) >= (blocks - 1) * BLOCK_SIZE
        assert deployment.metrics().total("wardrop_decisions_total") >= 3
        workers.stop(10.0)
        wait_until(lambda: available() == 0, "the end of the workers")
    finally:
        stop_all(deployment.children)


def test_workers_in_etcd(etcd: str, tmp_path: Path):
    check({"DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": etcd}, tmp_path)


def test_events_and_requests_over_nats(nats: str, tmp_path: Path):
    planes = {"DYN_EVENT_PLANE": "nats", "DYN_REQUEST_PLANE": "nats", "NATS_SERVER": nats}
    check(planes, tmp_path)


def test_everything_over_etcd_and_nats(etcd: str, nats: str, tmp_path: Path):
    planes = {"DYN_EVENT_PLANE": "nats", "DYN_REQUEST_PLANE": "nats", "NATS_SERVER": nats}
    check({**planes, "DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": etcd}, tmp_path)
