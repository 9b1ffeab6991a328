"""Discovery backends that meet bad entries, missing folders, full tables and odd answers.

One bad entry costs itself, and an outage keeps the last view. No exception leaves a backend.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from aiohttp import web
from tests.waiting import wait_until_async

from wardrop.dynamo.discovery import file_source, file_store
from wardrop.dynamo.discovery.etcd_source import EtcdSource, read_pairs
from wardrop.dynamo.discovery.file_source import FileSource
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.frontend_source import FrontendSource

BAD_ENTRIES = {
    "deep": b'{"type":"Model","card_json":' + b'{"x":' * 50_000,
    "text": b"no json",
    "list": b"[]",
    "null": b"null",
    "bytes": b"\xff\xfe\x00",
    "empty": b"",
    "large": b" " * (2 << 20),
    "types": b'{"namespace":1,"component":[],"endpoint":{},"instance_id":"x"}',
}


def write(root: Path, snapshot: dict) -> None:
    for bucket, items in snapshot.items():
        for key, content in items.items():
            path = root / "v1" / bucket / quote(key, safe="")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))


def ids(view: FleetView) -> list[int]:
    return sorted(key[2] for key in view.workers)


class Latest:
    """The newest view of a source, followed in the background."""

    def __init__(self) -> None:
        self.view: FleetView | None = None
        self.failure: BaseException | None = None

    async def follow(self, views: AsyncIterator[FleetView]) -> None:
        try:
            async for view in views:
                self.view = view
        except Exception as error:
            self.failure = error

    @property
    def ids(self) -> list[int]:
        assert self.failure is None, f"the backend ended: {self.failure!r}"
        return ids(self.view) if self.view is not None else []


@asynccontextmanager
async def following(views: AsyncIterator[FleetView]) -> AsyncIterator[Latest]:
    latest = Latest()
    task = asyncio.create_task(latest.follow(views))
    try:
        yield latest
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize("name", BAD_ENTRIES)
def test_bad_file_costs_itself_only(tmp_path, entries, name):
    write(tmp_path, entries.worker(1).snapshot)
    for bucket in ("instances", "mdc", "event_channels", "event_sources"):
        folder = tmp_path / "v1" / bucket
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"bad-{name}").write_bytes(BAD_ENTRIES[name])

    async def run() -> None:
        async with following(FileSource(tmp_path, 0.01).views()) as latest:
            await wait_until_async(lambda: latest.ids == [1])
            assert latest.view is not None
            assert len(latest.view.problems) == 4
            write(tmp_path, entries.worker(2).snapshot)
            await wait_until_async(lambda: latest.ids == [1, 2])

    asyncio.run(run())


def test_store_that_disappears_keeps_the_last_view_and_is_found_again(tmp_path, entries):
    store, away = tmp_path / "store", tmp_path / "away"
    write(store, entries.worker(1).snapshot)

    async def run() -> None:
        source = FileSource(store, 0.01)
        async with following(source.views()) as latest:
            await wait_until_async(lambda: latest.ids == [1])
            store.rename(away)
            await wait_until_async(lambda: "does not exist" in (source.last_error or ""))
            assert latest.ids == [1], "an outage must not empty the fleet"
            write(away, entries.worker(2).snapshot)
            away.rename(store)
            await wait_until_async(lambda: latest.ids == [1, 2])
            assert source.last_error is None
            shutil.rmtree(store)
            await wait_until_async(lambda: "does not exist" in (source.last_error or ""))
            assert latest.ids == [1, 2]

    asyncio.run(run())


def test_full_descriptor_table_keeps_the_last_view(tmp_path, entries, monkeypatch):
    write(tmp_path, entries.worker(1).snapshot)
    is_full = False
    refusals = 0

    def refuse_when_full(call):
        def guarded(*arguments, **options):
            nonlocal refusals
            if is_full:
                refusals += 1
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return call(*arguments, **options)

        return guarded

    monkeypatch.setattr(file_store.os, "scandir", refuse_when_full(os.scandir))
    monkeypatch.setattr(file_source, "read_entry", refuse_when_full(file_store.read_entry))

    async def run() -> None:
        nonlocal is_full
        source = FileSource(tmp_path, 0.01)
        async with following(source.views()) as latest:
            await wait_until_async(lambda: latest.ids == [1])
            is_full = True
            await wait_until_async(lambda: refusals >= 3, "several polls without a descriptor")
            assert "Too many open files" in (source.last_error or "")
            write(tmp_path, entries.worker(2).snapshot)
            assert latest.ids == [1]
            is_full = False
            await wait_until_async(lambda: latest.ids == [1, 2])
            assert source.last_error is None

    asyncio.run(run())


def coded(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def pairs_of(snapshot: dict) -> list[tuple[str, str]]:
    return [
        (coded(f"v1/{bucket}/{key}"), coded(json.dumps(content)))
        for bucket, items in snapshot.items()
        for key, content in items.items()
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((coded("v1/mdc/bad"), coded(value)) for value in BAD_ENTRIES.values()),
        (coded(b"v1/mdc/\xff"), coded("{}")),
        ("no base64!", coded("{}")),
        (coded("v1/mdc/k"), "no base64!"),
    ],
)
def test_bad_pair_of_etcd_costs_itself_only(entries, key, value):
    good = pairs_of(entries.worker(1).worker(2).snapshot)
    content, problems = read_pairs([good[0], (key, value), *good[1:]])
    assert len(content["mdc"]) == len(content["instances"]) == 2
    assert len(problems) == 1


def test_pair_of_an_unknown_bucket_is_left_alone(entries):
    content, problems = read_pairs([(coded("v1/planner/x"), coded("{")), (coded("v1/"), "")])
    assert not any(content.values())
    assert problems == []


@asynccontextmanager
async def answering(answers: dict[str, list[bytes]]) -> AsyncIterator[str]:
    """A server that gives each path its answers in turn, and the last one for ever."""

    async def answer(request: web.Request) -> web.Response:
        waiting = answers.get(request.path)
        if waiting is None:
            return web.Response(status=404)
        return web.Response(body=waiting.pop(0) if len(waiting) > 1 else waiting[0])

    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


ODD_ANSWERS = [b"", b"null", b"[]", b"7", b'"x"', b"{}", b"{", b"[" * 100_000, b'{"kvs":7}']


def test_odd_answers_of_etcd_keep_the_last_view(entries):
    kvs = [{"key": key, "value": value} for key, value in pairs_of(entries.worker(1).snapshot)]
    whole = json.dumps({"header": {"revision": "7"}, "kvs": kvs}).encode()
    event = b'{"result":{"created":true}}\n{"result":{"events":[{}]}}\n'
    watch = [event, b"null\n", b"[" * 100_000 + b"\n", b"x" * (2 << 20), event]

    async def run() -> None:
        answers = {"/v3/kv/range": [whole, *ODD_ANSWERS, whole], "/v3/watch": watch}
        async with answering(answers) as url:
            source = EtcdSource([url], 0.001)
            async with following(source.views()) as latest:
                await wait_until_async(lambda: latest.ids == [1])
                await wait_until_async(lambda: source.last_error is not None, "an odd answer")
                assert latest.ids == [1], "an outage must not empty the fleet"
                await wait_until_async(lambda: len(answers["/v3/kv/range"]) == 1)
                await wait_until_async(lambda: source.last_error is None, "a whole answer again")
                assert latest.ids == [1]

    asyncio.run(run())


def test_odd_answers_of_a_frontend_keep_the_last_view():
    place = {"namespace": "dynamo", "component": "backend", "endpoint": "generate"}
    models = json.dumps({"data": [{"id": "tiny"}]}).encode()
    health = json.dumps({"instances": [{**place, "instance_id": 1}]}).encode()
    odd = [answer for answer in ODD_ANSWERS if answer not in (b"{}", b'{"kvs":7}')]

    async def run() -> None:
        answers = {"/v1/models": [models], "/health": [health, *odd, health]}
        async with answering(answers) as url:
            source = FrontendSource([url], 16, [], 0.001)
            async with following(source.views()) as latest:
                await wait_until_async(lambda: latest.ids == [1])
                await wait_until_async(lambda: source.last_error is not None, "an odd answer")
                assert latest.ids == [1], "an outage must not empty the fleet"
                await wait_until_async(lambda: len(answers["/health"]) == 1)
                await wait_until_async(lambda: source.last_error is None, "a whole answer again")

    asyncio.run(run())


def test_two_namespaces_behind_a_frontend_leave_the_model_to_dynamo():
    def instance(namespace: str, component: str, number: int) -> dict:
        return {
            "namespace": namespace,
            "component": component,
            "endpoint": "generate",
            "instance_id": number,
        }

    listed = [instance("a", "backend", 1), instance("b", "backend", 2)]

    async def view_of(instances: list[dict]) -> FleetView:
        models = json.dumps({"data": [{"id": "tiny"}]}).encode()
        answers = {
            "/v1/models": [models],
            "/health": [json.dumps({"instances": instances}).encode()],
        }
        async with answering(answers) as url:
            return await anext(FrontendSource([url], 16, [], 0.01).views())

    assert asyncio.run(view_of(listed)).models["tiny"].left_to_dynamo
    assert not asyncio.run(view_of(listed[:1])).models["tiny"].left_to_dynamo
    split = [instance("a", "prefill", 1), instance("a", "backend", 2)]
    assert not asyncio.run(view_of(split)).models["tiny"].left_to_dynamo
