"""Endpoints of pools, services and labels."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.kubernetes.api_server import (
    PODS,
    POOLS,
    SLICES,
    ApiServer,
    endpoint,
    endpoint_slice,
    pod,
)
from tests.waiting import wait_until_async

from wardrop.errors import InputError
from wardrop.kubernetes.endpoints import EndpointFollowers
from wardrop.kubernetes.reflector import Timing
from wardrop.kubernetes.selector import EndpointSelector

QUICK = Timing(request_s=5, silent_s=20, first_pause_s=0.01, longest_pause_s=0.05, steady_s=1)
APP = {"app": "qwen"}


def pool(name: str = "qwen", labels: Any = APP, ports: tuple[int, ...] = (8000,)) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "targetPorts": [{"number": port} for port in ports],
            "endpointPickerRef": {"name": "wardrop", "port": {"number": 9002}},
        },
        "status": {},
    }


@asynccontextmanager
async def following(
    environment: dict[str, str], **selector: Any
) -> AsyncIterator[EndpointFollowers]:
    found = EndpointFollowers(environment, "prod", lambda: None, QUICK)
    chosen = EndpointSelector(**selector)
    chosen.check("selector")
    found.follow((chosen,))
    try:
        yield found
    finally:
        await found.close()


async def places(found: EndpointFollowers, *wanted: str) -> None:
    def now() -> list[str]:
        return sorted(e.authority for each in found.endpoints.values() for e in each)

    await wait_until_async(lambda: now() == sorted(wanted), f"{wanted}")


def test_ready_pods_of_a_pool_are_its_endpoints(cluster: ApiServer, environment):
    cluster.put(POOLS, pool())
    cluster.put(PODS, pod("a", "10.0.0.1", labels=APP))
    cluster.put(PODS, pod("b", "10.0.0.2", labels=APP, ready=False))
    cluster.put(PODS, pod("c", "10.0.0.3", labels={"app": "other"}))

    async def run() -> None:
        async with following(environment, inference_pool="qwen") as found:
            await places(found, "10.0.0.1:8000")
            cluster.put(PODS, pod("b", "10.0.0.2", labels=APP))
            await places(found, "10.0.0.1:8000", "10.0.0.2:8000")
            going = pod("a", "10.0.0.1", labels=APP, deletionTimestamp="2030-01-01T00:00:00Z")
            cluster.put(PODS, going)
            await places(found, "10.0.0.2:8000")
            cluster.put(PODS, pod("b", "", labels=APP))
            await places(found)

    asyncio.run(run())


def test_pool_that_changes_its_selector_or_ports_is_followed(cluster: ApiServer, environment):
    cluster.put(POOLS, pool())
    cluster.put(PODS, pod("a", "10.0.0.1", labels=APP))
    cluster.put(PODS, pod("c", "10.0.0.3", labels={"app": "other"}))

    async def run() -> None:
        async with following(environment, inference_pool="prod/qwen") as found:
            await places(found, "10.0.0.1:8000")
            cluster.put(POOLS, pool(ports=(8000, 8001)))
            await places(found, "10.0.0.1:8000", "10.0.0.1:8001")
            cluster.put(POOLS, pool(labels={"app": "other"}))
            await places(found, "10.0.0.3:8000")
            cluster.put(POOLS, pool(labels={}))
            await places(found)
            assert "no labels" in found.problems[0]
            cluster.put(POOLS, pool())
            await places(found, "10.0.0.1:8000")
            cluster.remove(POOLS, "qwen")
            await places(found)
            assert "does not exist" in found.problems[0]

    asyncio.run(run())


def test_labels_narrow_a_pool(cluster: ApiServer, environment):
    cluster.put(POOLS, pool())
    for name, role in (("a", "prefill"), ("b", "decode")):
        cluster.put(PODS, pod(name, f"10.0.0.{ord(name)}", labels=APP | {"llm-d.ai/role": role}))

    async def run() -> None:
        narrowed = {"inference_pool": "qwen", "pods": "llm-d.ai/role=prefill"}
        async with following(environment, **narrowed) as found:
            await places(found, "10.0.0.97:8000")

    asyncio.run(run())


def test_each_server_of_a_pod_has_its_own_event_ports(cluster: ApiServer, environment):
    cluster.put(POOLS, pool(ports=(8000, 8001)))
    cluster.put(PODS, pod("a", "fd00::1", labels=APP))

    async def run() -> None:
        async with following(
            environment, inference_pool="qwen", events_port=5557, replay_port=5600, ranks=2
        ) as found:
            await places(found, "[fd00::1]:8000", "[fd00::1]:8001")
            (selector,) = found.endpoints
            first, second = found.endpoints[selector]
            assert first.socket(selector.events_port, selector.ranks) == "tcp://[fd00::1]:5557"
            assert second.socket(selector.events_port, selector.ranks) == "tcp://[fd00::1]:5559"
            assert second.socket(selector.replay_port, selector.ranks) == "tcp://[fd00::1]:5602"
            assert first.socket(None, 1) is None

    asyncio.run(run())


def test_ready_endpoints_of_a_service_are_followed(cluster: ApiServer, environment):
    of_service = {"kubernetes.io/service-name": "vllm"}

    def put(*endpoints: dict[str, Any], **options: Any) -> None:
        cluster.put(SLICES, endpoint_slice("s", *endpoints, labels=of_service, **options))

    put(
        endpoint("a", "10.0.0.1", "ua"),
        endpoint("b", "10.0.0.2", "ub", ready=False),
        endpoint("c", "10.0.0.3", "uc", ready=None),
        endpoint("d", "10.0.0.4", "ud", terminating=True),
    )
    both = endpoint_slice("s6", endpoint("a", "fd00::1", "ua"), labels=of_service, family="IPv6")
    cluster.put(SLICES, both)
    names = endpoint_slice(
        "n", endpoint("x", "host.example", "ux"), labels=of_service, family="FQDN"
    )
    cluster.put(SLICES, names)

    async def run() -> None:
        async with following(environment, service="vllm") as found:
            await places(found, "10.0.0.1:8000", "10.0.0.3:8000")
            put(endpoint("b", "10.0.0.2", "ub"))
            # Only the second family of the first pod is left.
            await places(found, "10.0.0.2:8000", "[fd00::1]:8000")
            cluster.remove(SLICES, "s6")
            await places(found, "10.0.0.2:8000")
            two = [{"name": "metrics", "port": 9}, {"name": "http", "port": 8080}]
            put(endpoint("b", "10.0.0.2", "ub"), ports=two)
            await places(found, "10.0.0.2:8080")
            put(endpoint("b", "10.0.0.2", "ub"), ports=[{"name": "x", "port": 1}, *two[:1]])
            await places(found)
            assert "expected 'http'" in found.problems[0]

    asyncio.run(run())


def test_port_of_a_service_can_be_named_or_numbered(cluster: ApiServer, environment):
    ports = [{"name": "api", "port": 7000}, {"name": "http", "port": 8000}]
    labels = {"kubernetes.io/service-name": "vllm"}
    found = endpoint_slice("s", endpoint("a", "10.0.0.1", "u"), labels=labels, ports=ports)
    cluster.put(SLICES, found)

    async def run() -> None:
        for port, wanted in (("api", 7000), (9000, 9000), (None, 8000)):
            async with following(environment, service="vllm", port=port) as followers:
                await places(followers, f"10.0.0.1:{wanted}")

    asyncio.run(run())


def test_outage_keeps_the_endpoints(cluster: ApiServer, environment):
    cluster.put(PODS, pod("a", "10.0.0.1", labels=APP))

    async def run() -> None:
        async with following(environment, pods="app=qwen", port=8000) as found:
            await places(found, "10.0.0.1:8000")
            cluster.stop()
            await wait_until_async(lambda: found.error is not None)
            answered = found.answered_unix_s
            await places(found, "10.0.0.1:8000")
            assert answered is not None
            assert found.answered_unix_s == answered, "freshness does not advance"
            cluster.start()
            cluster.put(PODS, pod("b", "10.0.0.2", labels=APP))
            await places(found, "10.0.0.1:8000", "10.0.0.2:8000")
            assert found.error is None

    asyncio.run(run())


@pytest.mark.parametrize(
    ("selector", "text"),
    [
        ({}, "expected one of inference_pool, service, pods"),
        ({"service": "a", "pods": "x=y"}, "give one of them"),
        ({"service": "a/b/c"}, r"service: got 'a/b/c', expected \[NAMESPACE/\]NAME"),
        ({"service": "../x"}, "service"),
        ({"inference_pool": "A_b"}, "inference_pool"),
        ({"service": "a", "namespace": "b/c"}, "namespace"),
        ({"pods": "x=y"}, "port: got None, expected a number"),
        ({"inference_pool": "a", "port": "http"}, "port: got 'http', expected a number"),
        ({"service": "a", "replay_port": 5}, "replay_port"),
        ({"service": "a", "events_port": 65_535, "ranks": 2}, "65536"),
        ({"inference_pool": "a", "events_port": 65_530}, "65537"),
    ],
    ids=range(11),
)
def test_wrong_selector_is_refused(selector: dict[str, Any], text: str):
    with pytest.raises(InputError, match=text):
        EndpointSelector(**selector).check("selector")
