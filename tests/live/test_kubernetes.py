"""Discovery in Kubernetes with a real Dynamo: its workers write the resources, its frontend reads.

The API server is the scripted one. Dynamo's own client registers at it, so the resources and the
join of ready pods are those of Dynamo and not of a test.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
from tests.kubernetes.api_server import SLICES, WORKERS, ApiServer, endpoint, endpoint_slice
from tests.kubernetes.test_dynamo_source import DISCOVERED, QUICK
from tests.waiting import DEADLINE_S, wait_until

from wardrop.dynamo.child_process import ChildProcess, stop_all
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.kubernetes_source import KubernetesSource
from wardrop.dynamo.model_folder import model_folder
from wardrop.dynamo.ports import free_port

pytest.importorskip("kubernetes_asyncio")
pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]

PODS = ("worker-0", "worker-1")


@pytest.fixture
def cluster(private_network: None) -> Iterator[ApiServer]:
    server = ApiServer()
    yield server
    server.close()


def environment(cluster: ApiServer, folder: Path, pod: str) -> dict[str, str]:
    """Variables of a container in a pod, as Dynamo's operator sets them."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DYN_")}
    return inherited | {
        "KUBECONFIG": cluster.kubeconfig(folder),
        "POD_NAME": pod,
        "POD_UID": f"uid-{pod}",
        "POD_NAMESPACE": cluster.namespace,
        "HF_HUB_OFFLINE": "1",
        "DYN_DISCOVERY_BACKEND": "kubernetes",
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_HTTP_HOST": "127.0.0.1",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",
        "DYN_LOG": "warn",
    }


def ready(cluster: ApiServer, *pods: str) -> None:
    """Make exactly these pods ready."""
    found = [endpoint(pod, "127.0.0.1", f"uid-{pod}") for pod in pods]
    cluster.put(SLICES, endpoint_slice("graph", *found, labels=DISCOVERED))


def start_worker(cluster: ApiServer, folder: Path, pod: str) -> ChildProcess:
    command = [sys.executable, "-m", "dynamo.mocker", "--model-path", str(model_folder())]
    command += ["--model-name", "tiny", "--block-size", "16", "--num-gpu-blocks-override", "64"]
    variables = environment(cluster, folder, pod) | {"DYN_SYSTEM_PORT": "0"}
    return ChildProcess(pod, command, variables, folder / f"{pod}.log")


def start_frontend(cluster: ApiServer, folder: Path, port: int) -> ChildProcess:
    command = [sys.executable, "-m", "dynamo.frontend", "--http-host", "127.0.0.1"]
    command += ["--http-port", str(port), "--router-mode", "kv"]
    variables = environment(cluster, folder, "frontend-0")
    return ChildProcess("frontend", command, variables, folder / "frontend.log")


def view_of(cluster: ApiServer, folder: Path, is_wanted: Callable[[FleetView], bool]) -> FleetView:
    """The first wanted view of a router that starts now."""

    async def run() -> FleetView:
        variables = environment(cluster, folder, "wardrop-0")
        source = KubernetesSource("", 0.05, variables, timing=QUICK)
        async with asyncio.timeout(DEADLINE_S), aclosing(source.views()) as views:
            async for view in views:
                if is_wanted(view):
                    return view
        raise AssertionError("a source must not end")

    return asyncio.run(run())


def get(url: str) -> tuple[int, dict]:
    request = urllib.request.Request(url)
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, json.loads(answer.read())
    except (OSError, ValueError):
        return 0, {}


def served_instances(port: int) -> set[int]:
    """Instances of the workers that a frontend of Dynamo lists."""
    found = get(f"http://127.0.0.1:{port}/health")[1].get("instances", [])
    return {each["instance_id"] for each in found if each.get("endpoint") == "generate"}


def post(port: int, tokens: list[int]) -> tuple[int, dict[str, str]]:
    body = json.dumps({"model": "tiny", "prompt": tokens, "max_tokens": 2}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}


def worker_of(headers: dict[str, str]) -> int | None:
    """The instance that a router pinned; None where Dynamo refused the pin and routed itself."""
    text = headers.get("x-wardrop-worker")
    return int(text.partition("/")[0]) if text else None


def test_workers_of_a_real_dynamo_are_followed_and_served(cluster: ApiServer, tmp_path: Path):
    children: list[ChildProcess] = []

    def alive() -> None:
        for child in children:
            assert child.exit_code is None, child.tail()

    try:
        children += [start_worker(cluster, tmp_path, pod) for pod in PODS]
        wait_until(
            lambda: (alive(), cluster.count("patch", WORKERS) >= 2 * len(PODS))[1],
            "the resources of both workers",
            150,
        )
        ready(cluster, *PODS)
        frontend, port = free_port(), free_port()
        children.append(start_frontend(cluster, tmp_path, frontend))
        wait_until(
            lambda: (alive(), len(served_instances(frontend)) == 2)[1], "both in the frontend"
        )
        # Two topics of each worker.
        view = view_of(cluster, tmp_path, lambda v: len(v.workers) == 2 and len(v.feeds) == 4)
        instances = {worker.instance for worker in view.workers.values()}
        assert instances == served_instances(frontend), "ids are those of Dynamo"
        assert view.models["tiny"].block_size == 16
        assert {worker.total_kv_blocks for worker in view.workers.values()} == {64}
        assert {feed.topic for feed in view.feeds.values()} == {
            "kv-events",
            "forward-pass-metrics",
        }
        command = [sys.executable, "-m", "wardrop", "dynamo", "--http-port", str(port)]
        command += ["--upstream", f"http://127.0.0.1:{frontend}", "--admin-port", "-1"]
        command += ["--routing-explain-headers"]
        variables = environment(cluster, tmp_path, "wardrop-0")
        before = len(cluster.requests)
        children.append(ChildProcess("wardrop", command, variables, tmp_path / "wardrop.log"))
        wait_until(
            lambda: (alive(), get(f"http://127.0.0.1:{port}/ready")[0] == 200)[1], "a ready router"
        )
        workers = {worker_of(post(port, list(range(n, n + 40)))[1]) for n in range(6)}
        assert workers <= instances
        # The blocks of workers are read by Dynamo's own client, which needs no more rights.
        log = tmp_path / "wardrop.log"
        wait_until(lambda: "read the blocks of" in log.read_text(), "the blocks of the workers")
        assert {verb for verb, _, _ in cluster.requests[before:]} == {"list", "watch"}
        # The pod of a worker is not ready: router and frontend let it go.
        ready(cluster, PODS[0])
        wait_until(lambda: len(served_instances(frontend)) == 1, "one worker in the frontend")
        (kept,) = served_instances(frontend)

        def routed() -> set[int | None]:
            answers = [post(port, list(range(n, n + 40))) for n in range(20, 26)]
            assert {status for status, _ in answers} == {200}
            return {worker_of(headers) for _, headers in answers}

        wait_until(lambda: routed() == {kept}, "every request at the worker that is left")
        last = view_of(cluster, tmp_path, lambda v: len(v.workers) == 1)
        assert {worker.instance for worker in last.workers.values()} == {kept}
    finally:
        stop_all(children)
