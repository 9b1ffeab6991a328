"""`wardrop serve` and `wardrop picker` on the pods of a cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("zmq")

from tests.fleet.conftest import engines, route
from tests.fleet.engine import BLOCK_TOKENS, Engine
from tests.kubernetes.api_server import (
    PODS,
    POOLS,
    SLICES,
    ApiServer,
    endpoint,
    endpoint_slice,
    pod,
)
from tests.kubernetes.test_endpoints import APP, QUICK, pool
from tests.picker.processes import metric
from tests.waiting import DEADLINE_S, wait_until

from wardrop.errors import InputError
from wardrop.fleet import KubernetesSpec, parse_selector
from wardrop.picker import PickerServer, read_file

__all__ = ["engines", "route"]

FIRST = [7 * n for n in range(8 * BLOCK_TOKENS + 3)]


def serve_from(cluster: ApiServer, name: str, engine: Engine, uid: str, **state: Any) -> None:
    """Make an engine the only endpoint of a service."""
    found = endpoint_slice(
        f"{name}-1",
        endpoint(f"{name}-0", "127.0.0.1", uid, **state),
        labels={"kubernetes.io/service-name": name},
        ports=[{"name": "http", "port": engine.port}],
    )
    cluster.put(SLICES, found)


def selector(name: str, engine: Engine) -> KubernetesSpec:
    assert engine.events is not None
    return KubernetesSpec(
        service=name,
        events_port=engine.events.events_port,
        replay_port=engine.events.replay_port,
    )


def test_serve_routes_to_the_pods_of_services_by_their_caches(
    cluster: ApiServer, environment, route, engines
):
    pair = [engines(), engines()]
    for name, engine in zip("ab", pair, strict=True):
        serve_from(cluster, name, engine, f"uid-{name}")
    router = route(
        kubernetes=tuple(selector(n, e) for n, e in zip("ab", pair, strict=True)),
        environment=environment,
        timing=QUICK,
        count=2,
    )
    assert router.complete(FIRST)[0] == 200
    owner = next(engine for engine in pair if engine.served)
    router.await_index(owner)
    answer = router.complete([*FIRST, *range(40)])
    assert answer[2]["usage"]["prompt_tokens_details"]["cached_tokens"] == 8 * BLOCK_TOKENS
    # A pod that is not ready takes nothing more.
    name = "ab"[pair.index(owner)]
    serve_from(cluster, name, owner, f"uid-{name}", ready=False)
    router.await_workers(1)
    before = len(owner.served)
    assert router.complete([*FIRST, 1, 2, 3])[0] == 200
    assert len(owner.served) == before


def test_a_later_pod_with_the_same_address_starts_with_an_empty_cache(
    cluster: ApiServer, environment, route, engines
):
    engine = engines()
    serve_from(cluster, "a", engine, "first")
    router = route(
        kubernetes=(selector("a", engine),), environment=environment, timing=QUICK, count=1
    )
    router.complete(FIRST)
    router.await_index(engine)
    (before,) = router.source.members()
    engine.cache.clear()
    serve_from(cluster, "a", engine, "second")
    wait_until(
        lambda: [each.incarnation for each in router.source.members()] == ["second"],
        "the later pod",
    )
    wait_until(lambda: router.worker(engine).get("available"), "the later pod may be chosen")
    (after,) = router.source.members()
    assert after.instance == before.instance
    view = router.server._sync.view
    assert {worker.address.split()[1] for worker in view.workers.values()} == {"second"}


def test_serve_keeps_its_workers_while_the_api_server_is_away(
    cluster: ApiServer, environment, route, engines
):
    pair = [engines(), engines()]
    cluster.put(POOLS, pool(ports=tuple(engine.port for engine in pair)))
    cluster.put(PODS, pod("a", "127.0.0.1", labels=APP))
    found = KubernetesSpec(inference_pool="prod/qwen")
    router = route(kubernetes=(found,), environment=environment, timing=QUICK, count=2)

    def part() -> dict[str, Any]:
        return router.ask("GET", "/health")[2]["control"].get("discovery_source", {})

    wait_until(lambda: part().get("answered_unix_s"), "the time of the last answer in /health")
    cluster.stop()
    wait_until(lambda: part().get("up") is False, "the outage in /health")
    assert "InferencePool prod/qwen" in part()["error"]
    answered = part()["answered_unix_s"]
    assert router.metric("control_part_up", part="discovery_source") == 0
    assert (
        router.metric("control_part_answered_timestamp_seconds", part="discovery_source")
        == answered
    )
    assert router.complete(FIRST)[0] == 200
    router.await_workers(2)
    cluster.start()
    wait_until(lambda: part().get("up") is True, "the end of the outage in /health")
    cluster.put(PODS, pod("a", "127.0.0.1", labels=APP, ready=False))
    router.await_workers(0)


def test_selectors_of_a_file_come_and_go_with_it(
    cluster: ApiServer, environment, route, engines, tmp_path: Path
):
    engine = engines()
    serve_from(cluster, "a", engine, "uid")
    file = tmp_path / "fleet.yaml"
    file.write_text("workers: []\n")
    router = route(file=file, environment=environment, timing=QUICK)
    with_service = tmp_path / "next.yaml"
    with_service.write_text(yaml.safe_dump({"kubernetes": [{"service": "a"}]}))
    with_service.rename(file)
    router.await_workers(1)
    assert router.source.name == f"service a, {file}"
    without = tmp_path / "next.yaml"
    without.write_text("workers: []\n")
    without.rename(file)
    router.await_workers(0)


class Picked:
    """A picker in this process that follows a file and a cluster."""

    def __init__(self, path: Path, environment: dict[str, str]) -> None:
        self.server = PickerServer(path, read_file(path), environment, QUICK)
        self.server.picker.start()
        self.server.follow_selectors()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._stop.wait(0.02):
            self.server.follow_file()
            self.server.follow_cluster()

    def addresses(self) -> list[str]:
        status = json.loads(self.server.picker.status())
        workers = [
            worker
            for model in status["models"]
            for found in model["pools"]
            for worker in found["workers"]
        ]
        return sorted(worker["instance"] for worker in workers)

    def close(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert self.server._cluster is not None
        self.server._cluster.close()
        self.server.picker.stop()


def instances(path: Path, *urls: str) -> list[int]:
    """Ids of workers by their addresses."""
    file = read_file(path)
    found = [{"url": url} for url in urls]
    text = yaml.safe_dump({"models": [{"name": "m"}], "workers": found})
    other = path.parent / "ids.yaml"
    other.write_text(text)
    assert file.models
    return sorted(each["instance"] for each in json.loads(read_file(other).endpoints_json()))


def test_picker_follows_a_pool_and_keeps_it_during_an_outage(
    cluster: ApiServer, environment, tmp_path: Path
):
    path = tmp_path / "picker.yaml"
    content: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "models": [{"name": "m"}],
        "workers": [{"url": "http://10.0.0.9:8000"}],
        "kubernetes": [{"inference_pool": "prod/qwen"}],
    }
    path.write_text(yaml.safe_dump(content))
    cluster.put(POOLS, pool())
    cluster.put(PODS, pod("a", "10.0.0.1", labels=APP))
    picked = Picked(path, environment)
    try:

        def await_urls(*urls: str) -> None:
            wanted = instances(path, *urls)
            wait_until(lambda: picked.addresses() == wanted, f"{urls}")

        await_urls("http://10.0.0.1:8000", "http://10.0.0.9:8000")
        wait_until(
            lambda: metric(picked.server.picker.metrics(), "control_part_up", part="cluster") == 1,
            "the cluster in the metrics",
        )
        cluster.put(PODS, pod("b", "10.0.0.2", labels=APP))
        await_urls("http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://10.0.0.9:8000")
        cluster.stop()
        wait_until(
            lambda: metric(picked.server.picker.metrics(), "control_part_up", part="cluster") == 0,
            "the outage in the metrics",
        )
        await_urls("http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://10.0.0.9:8000")
        cluster.start()
        cluster.remove(PODS, "a")
        await_urls("http://10.0.0.2:8000", "http://10.0.0.9:8000")
        content["kubernetes"] = []
        replacement = tmp_path / "next.yaml"
        replacement.write_text(yaml.safe_dump(content))
        replacement.rename(path)
        await_urls("http://10.0.0.9:8000")
    finally:
        picked.close()


@pytest.mark.parametrize(
    ("selectors", "text"),
    [
        ([{"inference_pool": "a", "service": "b"}], r"kubernetes\[0\]: got a service and other"),
        ([{"service": "a"}, {"service": "a"}], "a selector twice"),
        ([{"service": "a", "model": "x"}], r"kubernetes\[0\]: model: got 'x', expected one of m"),
        ([{"service": "a", "colour": "x"}], "colour"),
    ],
    ids=range(4),
)
def test_wrong_selector_of_a_picker_is_refused(tmp_path: Path, selectors, text: str):
    path = tmp_path / "picker.yaml"
    path.write_text(yaml.safe_dump({"models": [{"name": "m"}], "kubernetes": selectors}))
    with pytest.raises(InputError, match=text):
        read_file(path)


def test_texts_of_flags_are_selectors():
    found = parse_selector("inference_pool", "llm/qwen,events_port=5557,replay_port=5558,ranks=2")
    assert found == KubernetesSpec(
        inference_pool="llm/qwen", events_port=5557, replay_port=5558, ranks=2
    )
    assert parse_selector("service", "vllm,port=api") == KubernetesSpec(service="vllm", port="api")
    with pytest.raises(InputError, match="colour"):
        parse_selector("service", "vllm,colour=red")
    with pytest.raises(InputError, match="events_port"):
        parse_selector("service", "vllm,events_port=99999")


def test_commands_say_when_the_package_is_missing(tmp_path: Path):
    code = (
        "import importlib.util, sys\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: (\n"
        "    None if name == 'kubernetes_asyncio' else real(name, *rest))\n"
        "from wardrop.cli import main; main()"
    )
    path = tmp_path / "picker.yaml"
    path.write_text(yaml.safe_dump({"models": [{"name": "m"}], "kubernetes": [{"service": "a"}]}))
    for arguments in (
        ["serve", "--service", "vllm"],
        ["picker", "--config", str(path)],
        ["dynamo", "--discovery", "kubernetes", "--upstream", "http://127.0.0.1:1"],
    ):
        ran = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True, text=True, timeout=60, env=os.environ,
        )  # fmt: skip
        assert ran.returncode == 2, ran.stderr
        assert "pip install 'wardrop[kubernetes]'" in ran.stderr
