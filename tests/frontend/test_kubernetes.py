"""Discovery in Kubernetes: real workers and the native frontend before a scripted API server."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests.frontend.native import served_by
from tests.frontend.test_live import prompt
from tests.kubernetes.api_server import WORKERS, ApiServer
from tests.live.client import Metrics, get, post
from tests.live.test_kubernetes import PODS, cluster, environment, ready, start_worker
from tests.waiting import wait_until

from wardrop.dynamo.child_process import ChildProcess, stop_all
from wardrop.dynamo.ports import free_port

__all__ = ["cluster"]

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network", "binary")]


def test_pods_are_workers_while_they_are_ready(cluster: ApiServer, tmp_path: Path):
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "wardrop.frontend", "--http-host", "127.0.0.1"]
    command += ["--http-port", str(port), "--wardrop-policy", "dynamo"]
    children = [start_worker(cluster, tmp_path, pod) for pod in PODS]
    native = ChildProcess(
        "native", command, environment(cluster, tmp_path, "frontend-0"), tmp_path / "native.log"
    )
    children.append(native)

    def available() -> float:
        for child in children:
            assert child.exit_code is None, child.tail()
        try:
            return Metrics(get(url, "/metrics").body.decode()).total("wardrop_worker_available")
        except OSError:
            return -1.0

    try:
        wait_until(
            lambda: cluster.count("patch", WORKERS) >= 2 * len(PODS), "both workers' resources"
        )
        ready(cluster, *PODS)
        wait_until(lambda: available() == 2, f"two workers; log:\n{native.tail()}", 60.0)
        body = {"model": "tiny", "prompt": prompt(1), "max_tokens": 2}
        body["nvext"] = {"extra_fields": ["worker_id"]}
        wait_until(lambda: post(url, "/v1/completions", body).status == 200, "the model")
        first = served_by(post(url, "/v1/completions", body))
        wait_until(
            lambda: (
                Metrics(get(url, "/metrics").body.decode()).total("wardrop_worker_held_blocks") > 0
            ),
            "the events of the prompt's blocks",
        )
        assert served_by(post(url, "/v1/completions", body)) == first
        assert Metrics(get(url, "/metrics").body.decode()).total("wardrop_decisions_total") >= 3
        ready(cluster, PODS[0])
        wait_until(lambda: available() == 1, "the end of a pod that is not ready", 60.0)
    finally:
        stop_all(children)
