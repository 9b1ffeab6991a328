"""The workers of a Dynamo in Kubernetes: custom resources joined with what is ready."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.dynamo.conftest import Entries
from tests.kubernetes.api_server import (
    PODS,
    SLICES,
    WORKERS,
    ApiServer,
    endpoint,
    endpoint_slice,
    pod,
)
from tests.waiting import wait_until_async

from wardrop.config import ConfigError, Dynamo
from wardrop.dynamo.discovery.backends import choose_source, dynamo_environment
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.kubernetes_source import LABELS, KubernetesSource
from wardrop.dynamo.discovery.scope import Scope
from wardrop.kubernetes.reflector import Timing

QUICK = Timing(request_s=5, silent_s=20, first_pause_s=0.01, longest_pause_s=0.05, steady_s=1)
DISCOVERED = dict(pair.split("=") for pair in LABELS.split(","))


def metadata(name: str, entries: Entries, pod_uid: str, **meta: Any) -> dict[str, Any]:
    """A `DynamoWorkerMetadata` as a worker of Dynamo 1.6.1 writes it."""
    owner = {"apiVersion": "v1", "kind": "Pod", "name": name, "uid": pod_uid, "controller": True}
    found = entries.snapshot
    return {
        "metadata": {"name": name, "ownerReferences": [owner], **meta},
        "spec": {
            "data": {
                "endpoints": found["instances"],
                "model_cards": found["mdc"],
                "event_channels": found["event_channels"],
                # Server-side apply writes an empty map as null.
                "event_sources": found["event_sources"] or None,
            }
        },
    }


def worker(cluster: ApiServer, number: int, **changes: Any) -> None:
    entries = Entries().worker(number, **changes).feed(100 + number)
    cluster.put(WORKERS, metadata(f"w{number}", entries, f"uid{number}"))


def ready(cluster: ApiServer, *numbers: int, name: str = "s1", **conditions: Any) -> None:
    found = [endpoint(f"w{n}", f"10.0.0.{n}", f"uid{n}", **conditions) for n in numbers]
    cluster.put(SLICES, endpoint_slice(name, *found, labels=DISCOVERED))


class Latest:
    def __init__(self) -> None:
        self.view: FleetView | None = None
        self.views = 0

    @property
    def ids(self) -> list[int]:
        return sorted(key[2] for key in self.view.workers) if self.view else []


@asynccontextmanager
async def following(
    environment: dict[str, str], scope: Scope | None = None
) -> AsyncIterator[tuple[KubernetesSource, Latest]]:
    source = KubernetesSource("", 0.01, environment, scope, QUICK)
    latest = Latest()

    async def follow() -> None:
        async for view in source.views():
            latest.view = view
            latest.views += 1

    task = asyncio.create_task(follow())
    try:
        yield source, latest
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def ids(latest: Latest, *wanted: int) -> None:
    await wait_until_async(lambda: latest.ids == list(wanted), f"the workers {wanted}")


def test_worker_needs_a_resource_and_a_ready_pod_of_the_same_uid(cluster, environment):
    worker(cluster, 1)
    worker(cluster, 2)
    ready(cluster, 1)

    async def run() -> None:
        async with following(environment) as (source, latest):
            await ids(latest, 1)
            assert latest.view is not None
            assert latest.view.models["tiny"].block_size == 16
            (feed,) = latest.view.feeds.values()
            assert (feed.publisher_id, feed.address) == (101, "tcp://127.0.0.1:5000")
            assert source.last_error is None
            assert source.answered_unix_s is not None
            ready(cluster, 1, 2)
            await ids(latest, 1, 2)
            # A new pod under the old name: the resource of the old pod says nothing about it.
            cluster.put(
                SLICES, endpoint_slice("s1", endpoint("w1", "10.0.0.9", "other"), labels=DISCOVERED)
            )
            await ids(latest)
            cluster.put(WORKERS, metadata("w1", Entries().worker(7), "other"))
            await ids(latest, 7)
            cluster.remove(WORKERS, "w1")
            await ids(latest)

    asyncio.run(run())


@pytest.mark.parametrize("state", [False, None])
def test_pod_that_is_not_ready_leaves(cluster, environment, state):
    worker(cluster, 1)
    ready(cluster, 1)

    async def run() -> None:
        async with following(environment) as (_, latest):
            await ids(latest, 1)
            ready(cluster, 1, ready=state)
            await ids(latest)
            ready(cluster, 1)
            await ids(latest, 1)

    asyncio.run(run())


def test_slice_without_the_label_of_dynamo_does_not_count(cluster, environment):
    worker(cluster, 1)
    worker(cluster, 2)
    ready(cluster, 1)
    cluster.put(SLICES, endpoint_slice("other", endpoint("w2", "10.0.0.2", "uid2")))

    async def run() -> None:
        async with following(environment) as (_, latest):
            await ids(latest, 1)

    asyncio.run(run())


def test_pod_in_two_slices_stays_until_both_are_gone_and_two_incarnations_exclude_each_other(
    cluster, environment
):
    worker(cluster, 1)
    ready(cluster, 1, name="s1")
    ready(cluster, 1, name="s2")

    async def run() -> None:
        async with following(environment) as (_, latest):
            await ids(latest, 1)
            cluster.remove(SLICES, "s1")
            ready(cluster, 1, name="s3")
            cluster.remove(SLICES, "s2")
            worker(cluster, 2)
            ready(cluster, 1, 2, name="s3")
            await ids(latest, 1, 2)
            cluster.put(
                SLICES, endpoint_slice("s4", endpoint("w1", "10.0.0.9", "next"), labels=DISCOVERED)
            )
            await ids(latest, 2)
            assert latest.view is not None
            assert any("two pods" in problem for problem in latest.view.problems)

    asyncio.run(run())


@pytest.mark.parametrize("data", [None, [], "text", {"endpoints": 3}], ids=str)
def test_invalid_data_keeps_the_last_valid_data_of_the_same_object(cluster, environment, data):
    worker(cluster, 1)
    ready(cluster, 1)

    async def run() -> None:
        async with following(environment) as (_, latest):
            await ids(latest, 1)
            bad = metadata("w1", Entries(), "uid1")
            bad["spec"]["data"] = data
            cluster.put(WORKERS, bad)
            await wait_until_async(
                lambda: latest.view is not None and any("w1" in p for p in latest.view.problems)
            )
            assert latest.ids == [1]
            worker(cluster, 1, address="127.0.0.1:4999/1")
            await wait_until_async(
                lambda: (
                    latest.view is not None
                    and [w.address for w in latest.view.workers.values()] == ["127.0.0.1:4999/1"]
                )
            )

    asyncio.run(run())


def test_bad_entry_costs_itself_and_not_its_resource(cluster, environment):
    good = metadata("w1", Entries().worker(1), "uid1")
    good["spec"]["data"]["model_cards"]["n/c/e/2"] = {"type": "Model", "card_json": 5}
    good["spec"]["data"]["endpoints"]["n/c/e/3"] = "x" * (2 << 20)
    cluster.put(WORKERS, good)
    ready(cluster, 1)

    async def run() -> None:
        async with following(environment) as (_, latest):
            await ids(latest, 1)
            assert latest.view is not None
            assert len([p for p in latest.view.problems if "w1" in p]) == 2

    asyncio.run(run())


def test_outage_keeps_the_workers_and_says_so(cluster, environment):
    worker(cluster, 1)
    ready(cluster, 1)

    async def run() -> None:
        async with following(environment) as (source, latest):
            await ids(latest, 1)
            cluster.stop()
            await wait_until_async(lambda: source.last_error is not None)
            answered = source.answered_unix_s
            assert latest.ids == [1]
            cluster.start()
            worker(cluster, 2)
            ready(cluster, 1, 2)
            await ids(latest, 1, 2)
            assert source.last_error is None
            assert (source.answered_unix_s or 0) >= (answered or 0)

    asyncio.run(run())


def test_cluster_that_cannot_be_read_yields_an_empty_view_at_once(cluster, environment):
    cluster.missing.add("dynamoworkermetadatas")
    ready(cluster, 1)

    async def run() -> None:
        async with following(environment) as (source, latest):
            await wait_until_async(lambda: latest.view is not None)
            assert latest.view == FleetView()
            assert "dynamoworkermetadatas.nvidia.com" in (source.last_error or "")
            assert "not installed" in (source.last_error or "")
            cluster.missing.clear()
            worker(cluster, 1)
            await ids(latest, 1)

    asyncio.run(run())


def test_missing_right_names_the_kind(cluster, environment):
    cluster.denied.add(("list", "endpointslices"))

    async def run() -> None:
        async with following(environment) as (source, _):
            await wait_until_async(lambda: source.last_error is not None)
            assert "'list' on resource 'endpointslices' of API group 'discovery.k8s.io'" in (
                source.last_error or ""
            )

    asyncio.run(run())


def test_containers_of_a_pod_are_workers_in_container_mode(cluster, environment):
    for name, number in (("p", 1), ("p-engine-1", 2), ("p-engine-2", 3)):
        entries = Entries().worker(number)
        cluster.put(WORKERS, metadata(name, entries, "uid-p"))
    found = pod("p", "10.0.0.1", uid="uid-p", labels=DISCOVERED)
    found["status"]["containerStatuses"] = [
        {"name": "main", "ready": True},
        {"name": "engine-1", "ready": True},
        {"name": "engine-2", "ready": False},
    ]
    cluster.put(PODS, found)

    async def run() -> None:
        mode = {"DYN_KUBE_DISCOVERY_MODE": "container"}
        async with following(environment | mode) as (_, latest):
            await ids(latest, 1, 2)

    asyncio.run(run())


def test_scope_of_namespaces_holds(cluster, environment):
    worker(cluster, 1, namespace="a")
    worker(cluster, 2, namespace="b")
    ready(cluster, 1, 2)

    async def run() -> None:
        async with following(environment, Scope(exact="b")) as (_, latest):
            await ids(latest, 2)

    asyncio.run(run())


def test_heartbeats_of_pods_make_no_view(cluster, environment):
    worker(cluster, 1)
    ready(cluster, 1)

    async def run() -> None:
        async with following(environment) as (source, latest):
            await ids(latest, 1)
            views = latest.views
            readiness = source.reflectors[0]
            for _ in range(5):
                before = readiness._revision
                ready(cluster, 1)
                await wait_until_async(lambda before=before: readiness._revision != before)
            assert latest.views == views

    asyncio.run(run())


def test_backend_is_chosen_by_dynamos_own_variable(environment):
    found = {**environment, "DYN_DISCOVERY_BACKEND": "kubernetes"}
    source = choose_source(Dynamo(), found, Scope())
    assert isinstance(source, KubernetesSource)
    assert source.namespace == "prod"
    assert dynamo_environment(source, found)["DYN_DISCOVERY_BACKEND"] == "kubernetes"
    named = choose_source(Dynamo(discovery="kubernetes", kubernetes_namespace="x"), {}, Scope())
    assert isinstance(named, KubernetesSource)
    assert dynamo_environment(named, {})["POD_NAMESPACE"] == "x"


def test_unknown_mode_is_refused(environment):
    with pytest.raises(ConfigError, match="expected one of pod, container"):
        KubernetesSource("", 0.1, environment | {"DYN_KUBE_DISCOVERY_MODE": "node"})


def test_metadata_is_no_secret_of_the_log(cluster, environment, caplog):
    worker(cluster, 1)
    ready(cluster, 1)

    async def run() -> None:
        async with following(environment) as (_, latest):
            await ids(latest, 1)

    with caplog.at_level("DEBUG"):
        asyncio.run(run())
    assert cluster.token not in caplog.text
    assert json.dumps(cluster.token) not in caplog.text
