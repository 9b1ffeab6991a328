"""Discovery against the real thing: etcd with real workers, and a real frontend's `/health`."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from tests.waiting import wait_until

from wardrop.dynamo.child_process import ChildProcess, stop_all
from wardrop.dynamo.discovery.etcd_source import EtcdSource
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.frontend_source import FrontendSource
from wardrop.dynamo.embedded import Fleet, FleetSpec, split_fleet
from wardrop.dynamo.model_folder import model_folder
from wardrop.dynamo.ports import free_port

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network")]


async def view_where(
    views: AsyncIterator[FleetView], true: Callable[[FleetView], bool], timeout_s: float = 20.0
) -> FleetView:
    async with asyncio.timeout(timeout_s):
        async for view in views:
            if true(view):
                return view
    raise AssertionError("a source must not end")


@pytest.fixture
def etcd(private_network: None, tmp_path: Path) -> Iterator[str]:
    binary = shutil.which("etcd")
    if binary is None:
        pytest.skip("NO ETCD: install it (Debian: apt-get install etcd-server) to run this test")
    client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
    command = [binary, "--data-dir", str(tmp_path / "etcd"), "--listen-client-urls", client]
    command += ["--advertise-client-urls", client, "--listen-peer-urls", peer]
    command += ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    child = ChildProcess("etcd", command, dict(os.environ), tmp_path / "etcd.log")
    try:

        def healthy() -> bool:
            assert child.exit_code is None, child.tail()
            try:
                with urllib.request.urlopen(f"{client}/health", timeout=2) as answer:
                    return b"true" in answer.read()
            except OSError:
                return False

        wait_until(healthy, "etcd's health")
        yield client
    finally:
        stop_all([child])


def start_mocker(etcd: str, tmp_path: Path, number: int) -> ChildProcess:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DYN_")} | {
        "HF_HUB_OFFLINE": "1",
        "DYN_DISCOVERY_BACKEND": "etcd",
        "ETCD_ENDPOINTS": etcd,
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "DYN_TCP_RPC_HOST": "127.0.0.1",
        "DYN_SYSTEM_HOST": "127.0.0.1",
        "DYN_SYSTEM_PORT": "0",
        "DYN_TCP_RESPONSE_STREAM_HOST": "lo",
        "DYN_LOG": "warn",
    }
    command = [sys.executable, "-m", "dynamo.mocker", "--model-path", str(model_folder())]
    command += ["--model-name", "tiny", "--block-size", "16", "--num-gpu-blocks-override", "64"]
    return ChildProcess(f"mocker-{number}", command, environment, tmp_path / f"mocker-{number}.log")


def test_workers_in_etcd_join_and_leave_and_an_outage_keeps_the_view(etcd: str, tmp_path: Path):
    children = [start_mocker(etcd, tmp_path, 0)]
    try:

        async def run() -> None:
            source = EtcdSource([etcd], 0.05)
            views = source.views()
            view = await view_where(views, lambda v: len(v.workers) == 1 and bool(v.feeds))
            (worker,) = view.workers.values()
            assert (worker.role, worker.total_kv_blocks) == ("aggregated", 64)
            assert view.models["tiny"].block_size == 16
            assert {feed.topic for feed in view.feeds.values()} <= {
                "kv-events",
                "forward-pass-metrics",
            }
            assert view.problems == ()

            children.append(start_mocker(etcd, tmp_path, 1))
            await view_where(views, lambda v: len(v.workers) == 2)

            children[0].stop()
            view = await view_where(views, lambda v: len(v.workers) == 1)
            assert worker.instance not in {key[2] for key in view.workers}

            away = EtcdSource(["http://127.0.0.1:9", etcd], 0.05)
            view = await view_where(away.views(), lambda v: bool(v.workers))
            assert len(view.workers) == 1, "the second endpoint must be tried after the first"
            assert away.last_error is None

        asyncio.run(run())
    finally:
        stop_all(children)
    assert all(child.exit_code is not None for child in children)


def test_etcd_that_is_away_gives_an_empty_view_and_says_so():
    async def run() -> None:
        source = EtcdSource(["http://127.0.0.1:9"], 0.05)
        view = await anext(source.views())
        assert not view.workers
        assert "127.0.0.1:9" in (source.last_error or "")

    asyncio.run(run())


def test_health_of_a_frontend_gives_instances_and_roles():
    with Fleet(split_fleet("1x2", FleetSpec())) as fleet:
        front = fleet.add_frontend("kv")

        async def run() -> FleetView:
            source = FrontendSource([front.url], 16, ["kv-events@tcp://127.0.0.1:1"], 0.1)
            return await view_where(source.views(), lambda v: len(v.workers) == 3)

        view = asyncio.run(run())
        found = {(worker.role, worker.instance) for worker in view.workers.values()}
        assert found == {(w.role, i) for w in fleet.workers for i in w.instances}
        assert view.models["tiny"].context_length == fleet.spec.max_model_len
        (feed,) = view.feeds.values()
        assert (feed.topic, feed.role, feed.address) == (
            "kv-events",
            "prefill",
            "tcp://127.0.0.1:1",
        )
