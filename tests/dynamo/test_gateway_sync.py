"""The synchronisation against a gateway that records, refuses on demand, and asks for resyncs.

The real gateway is driven in tests/live; here its refusals are needed at will.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from tests.dynamo.given import Given
from tests.waiting import wait_until_async

from wardrop.dynamo.block_dump import DumpError
from wardrop.dynamo.discovery.fleet_view import FleetView, Model
from wardrop.dynamo.discovery.store_reader import read_fleet_view
from wardrop.dynamo.gateway_sync import Actions, FleetGateway, GatewaySync
from wardrop.dynamo.tokenizer_files import TokenizerFilesError


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple] = []
        self.refuse: Callable[[tuple], bool] = lambda _call: False
        self.report: dict = {}

    def __getattr__(self, name: str) -> Callable[..., None]:
        def call(*arguments: object) -> None:
            made = (name, *arguments)
            if self.refuse(made):
                raise ValueError("refused on demand")
            self.calls.append(made)

        return call

    def status(self) -> str:
        return json.dumps(self.report)

    def named(self, name: str) -> list[tuple]:
        return [call[1:] for call in self.calls if call[0] == name]


class Bench:
    def __init__(self, interval_s: float = 0.0) -> None:
        self.gateway = Recorder()
        self.source = Given()
        self.dumps: list[tuple[str, int]] = []
        self.dump_fails = False
        self.folder_fails = False
        gateway = cast(FleetGateway, self.gateway)
        self.served = True
        self.asked = 0
        self.restored: list[tuple[tuple[str, str], list[int], int]] = []
        actions = Actions(self.folder, self.served_models, self.dump, self.restore)
        self.sync = GatewaySync(gateway, self.source, actions, interval_s)

    async def folder(self, model: Model) -> Path:
        if self.folder_fails:
            raise TokenizerFilesError("no road to the worker")
        return Path("/models") / model.name

    async def restore(self, pool: tuple[str, str], publishers: list[int]) -> None:
        self.restored.append((pool, publishers, len(self.gateway.calls)))

    async def served_models(self) -> set[str]:
        self.asked += 1
        return {"tiny", "other"} if self.served else set()

    async def dump(self, endpoint: str, block_size: int) -> str:
        self.dumps.append((endpoint, block_size))
        if self.dump_fails:
            raise DumpError("the worker does not answer")
        return "[]"

    def run(self, test: Callable[[], object]) -> None:
        async def main() -> None:
            tasks = [asyncio.create_task(part) for part in (self.sync.follow(), self.sync.repair())]
            try:
                await test()  # type: ignore[misc]
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(main())


def status(needs_resync: bool) -> dict:
    pool = {"role": "aggregated", "workers": [{"instance": 1, "needs_resync": needs_resync}]}
    return {"models": [{"name": "tiny", "pools": [pool]}]}


@pytest.fixture(autouse=True)
def fast_ticks(monkeypatch):
    monkeypatch.setattr("wardrop.dynamo.gateway_sync._STATUS_INTERVAL_S", 0.01)
    monkeypatch.setattr("wardrop.dynamo.gateway_sync._REPAIR_INTERVAL_S", 0.01)


def test_fleet_is_applied_in_order_and_its_blocks_are_read_once(entries):
    bench = Bench()

    async def test() -> None:
        view = read_fleet_view(
            entries.worker(1).worker(2).feed(5).feed(6, "forward-pass-metrics").content
        )
        bench.source.queue.put_nowait(view)
        await wait_until_async(lambda: bench.gateway.named("load_dump"))
        names = [call[0] for call in bench.gateway.calls]
        assert names == ["upsert_model"] + ["upsert_worker"] * 2 + ["subscribe"] * 2 + [
            "begin_dump",
            "load_dump",
        ]
        model = json.loads(bench.gateway.named("upsert_model")[0][0])
        assert model == {
            "name": "tiny",
            "folder": "/models/tiny",
            "block_size": 16,
            "context_length": 32768,
            "loras": [],
            "checksums": list(view.models["tiny"].checksums),
            "left_to_dynamo": False,
            "aliases": [],
            "card": {"completions_have_special_tokens": False},
        }
        assert bench.dumps == [("dynamo.backend.generate", 16)]
        assert bench.gateway.named("load_dump") == [("tiny", "aggregated", "[]")]
        assert bench.sync.view.workers == view.workers
        # Once, when the workers are known and before any feed of KV events is followed.
        ((pool, publishers, calls_before),) = bench.restored
        assert (pool, publishers) == (("tiny", "aggregated"), [5])
        followed = [json.loads(call[1])["publisher_id"] for call in bench.gateway.calls[3:5]]
        assert 3 <= calls_before <= 3 + followed.index(5)

    bench.run(test)


def test_refused_change_is_tried_again_until_it_holds(entries, caplog):
    bench = Bench()
    bench.gateway.refuse = lambda call: call[0] == "upsert_worker"

    async def test() -> None:
        bench.source.queue.put_nowait(read_fleet_view(entries.worker(1).content))
        await wait_until_async(lambda: bench.sync.counters.refused >= 3)
        assert not bench.sync.view.workers
        bench.gateway.refuse = lambda _call: False
        await wait_until_async(lambda: bench.sync.view.workers)

    bench.run(test)
    logged = [record for record in caplog.records if "refused on demand" in record.message]
    assert len(logged) == 1, "a lasting refusal is logged once, not each tick"


def test_feed_with_a_gap_is_read_again_but_not_faster_than_the_interval(entries):
    bench = Bench(interval_s=0.3)

    async def test() -> None:
        bench.source.queue.put_nowait(read_fleet_view(entries.worker(1).feed(5).content))
        await wait_until_async(lambda: len(bench.dumps) == 1)
        began_s = asyncio.get_running_loop().time()
        bench.gateway.report = status(needs_resync=True)
        await wait_until_async(lambda: len(bench.dumps) == 3)
        assert asyncio.get_running_loop().time() - began_s >= 0.55
        bench.gateway.report = status(needs_resync=False)

    bench.run(test)


def test_failed_dump_is_tried_again(entries):
    bench = Bench()
    bench.dump_fails = True

    async def test() -> None:
        bench.source.queue.put_nowait(read_fleet_view(entries.worker(1).feed(5).content))
        await wait_until_async(lambda: bench.sync.blocks.dumps_failed >= 2)
        bench.dump_fails = False
        await wait_until_async(lambda: bench.sync.blocks.dumps == 1)

    bench.run(test)


def test_model_without_a_folder_is_served_and_its_folder_looked_for_again(entries, monkeypatch):
    monkeypatch.setattr("wardrop.dynamo.model_loader._FOLDER_RETRY_S", 0.02)
    bench = Bench()
    bench.folder_fails = True

    async def test() -> None:
        bench.source.queue.put_nowait(read_fleet_view(entries.worker(1).content))
        await wait_until_async(lambda: bench.sync.view.workers)
        assert json.loads(bench.gateway.named("upsert_model")[0][0])["folder"] is None
        bench.folder_fails = False
        await wait_until_async(
            lambda: (
                json.loads(bench.gateway.named("upsert_model")[-1][0])["folder"] == "/models/tiny"
            )
        )

    bench.run(test)


def test_everything_that_left_is_taken_out(entries):
    bench = Bench()

    async def test() -> None:
        bench.source.queue.put_nowait(read_fleet_view(entries.worker(1).feed(5).content))
        await wait_until_async(lambda: bench.sync.view.feeds)
        bench.source.queue.put_nowait(FleetView())
        await wait_until_async(lambda: not bench.sync.view.models)
        assert bench.gateway.named("unsubscribe") == [(5,)]
        assert bench.gateway.named("remove_worker") == [("tiny", "aggregated", 1)]
        assert bench.gateway.named("remove_model") == [("tiny",)]

    bench.run(test)


def test_worker_waits_until_a_frontend_serves_its_model(entries):
    bench = Bench()
    bench.served = False

    async def test() -> None:
        bench.source.queue.put_nowait(read_fleet_view(entries.worker(1).feed(5).content))
        await wait_until_async(lambda: bench.sync.view.models)
        asked = bench.asked
        await wait_until_async(lambda: bench.asked >= asked + 3, "several ticks")
        assert not bench.sync.view.workers
        assert not bench.sync.view.feeds
        bench.served = True
        await wait_until_async(lambda: bench.sync.view.workers and bench.sync.view.feeds)

    bench.run(test)


def test_feed_waits_for_its_own_worker_and_its_blocks_are_then_read(entries):
    bench = Bench()
    late = "upsert_worker", 2
    bench.gateway.refuse = lambda call: (call[0], instance_of(call)) == late

    async def test() -> None:
        entries.worker(1).worker(2).feed(5).source(5, 1).feed(6).source(6, 2)
        bench.source.queue.put_nowait(read_fleet_view(entries.content))
        await wait_until_async(lambda: len(bench.dumps) == 1)
        assert set(bench.sync.view.feeds) == {5}
        bench.gateway.refuse = lambda _call: False
        await wait_until_async(lambda: set(bench.sync.view.feeds) == {5, 6})
        await wait_until_async(lambda: len(bench.dumps) == 2)

    bench.run(test)


def instance_of(call: tuple) -> object:
    return json.loads(call[1])["instance"] if call[0] == "upsert_worker" else None
