"""List and watch: what a cluster does when it works, and when it breaks."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from tests.kubernetes.api_server import PODS as KIND
from tests.kubernetes.api_server import ApiServer, pod, status
from tests.waiting import wait_until_async

from wardrop.kubernetes import reflector as module
from wardrop.kubernetes.access import Access
from wardrop.kubernetes.objects import PODS
from wardrop.kubernetes.reflector import Reflector, Timing

QUICK = Timing(
    request_s=5, silent_s=20, watch_s=60, first_pause_s=0.01, longest_pause_s=0.05, steady_s=1
)


@asynccontextmanager
async def following(
    environment: dict[str, str], timing: Timing = QUICK, **options: Any
) -> AsyncIterator[Reflector]:
    access = Access(environment)
    found = Reflector(access, PODS, "prod", lambda: None, timing=timing, **options)
    task = asyncio.create_task(found.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await access.forget()


async def names(found: Reflector, *wanted: str) -> None:
    await wait_until_async(lambda: sorted(found.objects) == sorted(wanted), f"the objects {wanted}")


def test_changes_arrive_on_the_watch_without_a_second_list(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await names(found, "a")
            cluster.put(KIND, pod("b", "10.0.0.2"))
            await names(found, "a", "b")
            cluster.put(KIND, pod("a", "10.0.0.1", ready=False))
            await wait_until_async(lambda: not found.objects["a"].is_ready)
            cluster.remove(KIND, "a")
            await names(found, "b")
            assert found.counts.lists == 1
            assert found.error is None
            assert found.answered_unix_s is not None
            assert abs(found.answered_unix_s - time.time()) < 60

    asyncio.run(run())
    assert cluster.count("list", KIND) == 1


def test_a_list_has_as_many_pages_as_it_needs(cluster: ApiServer, environment, monkeypatch):
    monkeypatch.setattr(module, "_PAGE_OBJECTS", 3)
    for number in range(8):
        cluster.put(KIND, pod(f"p{number}", "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await names(found, *(f"p{number}" for number in range(8)))

    asyncio.run(run())
    assert cluster.count("list", KIND) == 3


def test_cut_watch_goes_on_from_the_last_version(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await names(found, "a")
            await wait_until_async(lambda: cluster.watches(KIND) == 1)
            cluster.bookmark()
            version = cluster._revision
            await wait_until_async(lambda: found._revision == str(version), "the bookmark")
            cluster.put(KIND, pod("b", "10.0.0.2"))
            await names(found, "a", "b")
            cluster.cut()
            cluster.put(KIND, pod("c", "10.0.0.3"))
            await names(found, "a", "b", "c")
            assert found.counts.lists == 1

    asyncio.run(run())
    starts = [
        int(query["resourceVersion"]) for verb, _, query in cluster.requests if verb == "watch"
    ]
    assert starts == sorted(starts)
    assert len(set(starts)) == len(starts) >= 2, "each watch starts where the last one ended"


def test_forgotten_version_leads_to_a_new_list_and_removes_what_went_meanwhile(
    cluster: ApiServer, environment
):
    for name in "ab":
        cluster.put(KIND, pod(name, "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await names(found, "a", "b")
            await wait_until_async(lambda: cluster.watches(KIND) == 1)
            cluster.stop()
            await wait_until_async(lambda: found.error is not None)
            cluster.start()
            cluster.remove(KIND, "a")
            cluster.put(KIND, pod("c", "10.0.0.3"))
            cluster.forget()
            await names(found, "b", "c")
            await wait_until_async(lambda: found.error is None)

    asyncio.run(run())


def test_error_event_410_on_an_open_watch_leads_to_a_new_list(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))
    gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}

    async def run() -> None:
        async with following(environment) as found:
            await wait_until_async(lambda: cluster.watches(KIND) == 1)
            cluster.send(KIND, json.dumps({"type": "ERROR", "object": gone}).encode() + b"\n")
            await wait_until_async(lambda: found.counts.lists == 2)
            assert found.counts.expired == 1
            assert sorted(found.objects) == ["a"]

    asyncio.run(run())


def test_version_that_is_always_forgotten_does_not_become_a_storm(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))
    cluster.answer_with = lambda verb: status(410, "Expired", "old") if verb == "watch" else None
    slow = Timing(first_pause_s=0.05, longest_pause_s=60, request_s=5)

    async def run() -> None:
        async with following(environment, slow) as found:
            await wait_until_async(lambda: found.counts.expired >= 4)
            assert found.counts.lists <= 5

    started_s = time.monotonic()
    asyncio.run(run())
    # Pauses of at least half of 0.05, 0.1 and 0.2 s lie between the attempts.
    assert time.monotonic() - started_s > 0.17


def test_server_that_is_away_removes_nothing_and_is_found_again(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await names(found, "a")
            answered = found.answered_unix_s
            cluster.stop()
            await wait_until_async(lambda: found.counts.failures >= 3, "several attempts")
            assert sorted(found.objects) == ["a"]
            assert found.error is not None
            assert found.answered_unix_s == answered, "freshness does not advance"
            cluster.start()
            cluster.put(KIND, pod("b", "10.0.0.2"))
            await names(found, "a", "b")
            assert found.error is None

    asyncio.run(run())


def test_server_that_answers_nonsense_removes_nothing(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))
    answers = [
        lambda _verb: web.Response(status=500, text="boom"),
        lambda _verb: web.Response(text="<html>a proxy</html>"),
        lambda _verb: web.json_response([]),
        lambda _verb: web.json_response({"items": 3, "metadata": {}}),
        lambda _verb: web.json_response({"kind": "Status", "code": 429}, status=429),
    ]

    async def run() -> None:
        async with following(environment) as found:
            await names(found, "a")
            for answer in answers:
                cluster.answer_with = answer
                cluster.cut()
                before = found.counts.failures + found.counts.refused_objects
                await wait_until_async(
                    lambda before=before: (
                        found.counts.failures + found.counts.refused_objects > before
                    )
                )
                assert sorted(found.objects) == ["a"]
            cluster.answer_with = lambda _verb: None
            cluster.put(KIND, pod("b", "10.0.0.2"))
            await names(found, "a", "b")

    asyncio.run(run())


def test_silent_watch_is_given_up(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))
    cluster.is_silent = True
    timing = Timing(silent_s=0.3, first_pause_s=0.01, longest_pause_s=0.05)

    async def run() -> None:
        async with following(environment, timing) as found:
            await names(found, "a")
            await wait_until_async(lambda: found.counts.silent >= 2)
            cluster.put(KIND, pod("b", "10.0.0.2"))
            cluster.is_silent = False
            await names(found, "a", "b")
            assert found.counts.lists == 1
            assert found.error is None, "silence alone is no fault"

    asyncio.run(run())


@pytest.mark.parametrize(
    "line",
    [
        b"no json",
        b"[]",
        b'{"type":"ADDED"}',
        b'{"type":"ADDED","object":{}}',
        b'{"type":"ADDED","object":{"metadata":{"name":7,"resourceVersion":"2000"}}}',
        b'{"type":"DELETED","object":{"metadata":{"resourceVersion":"2000"}}}',
        b'{"type":"NEW","object":{"metadata":{"name":"x","resourceVersion":"2000"}}}',
        b'{"type":"ADDED","object":' + b'{"a":' * 100_000,
        b'{"type":"ADDED","object":{"metadata":{"name":"' + b"x" * (5 << 20) + b'"}}}',
        b"\xff\xfe\x00",
    ],
    ids=range(10),
)
def test_bad_event_costs_itself_only(cluster: ApiServer, environment, line: bytes):
    cluster.put(KIND, pod("a", "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await wait_until_async(lambda: cluster.watches(KIND) == 1)
            cluster.send(KIND, line + b"\n")
            cluster.put(KIND, pod("b", "10.0.0.2"))
            await names(found, "a", "b")
            assert found.counts.refused_objects == 1
            assert len(found.problems) == 1
            assert len(found.problems[0]) <= 300
            assert found.counts.watches == 1, "the stream stays"

    asyncio.run(run())


def test_rest_of_a_line_over_the_limit_is_no_event(cluster: ApiServer, environment):
    event = {"type": "DELETED", "object": {"metadata": {"name": "a", "resourceVersion": "1"}}}
    tail = json.dumps(event).encode()

    class Stream:
        async def iter_any(self) -> AsyncIterator[bytes]:
            for chunk in (b"x" * (3 << 20), b"x" * (3 << 20), tail + b"\n" + tail, b"\n"):
                yield chunk

    async def run() -> None:
        found = Reflector(Access(environment), PODS, "prod", lambda: None)
        stream: Any = Stream()
        assert [line async for line in found._lines(stream)] == [tail]
        assert found.counts.refused_objects == 1

    asyncio.run(run())


def test_problem_without_a_name_ends_with_its_watch(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await wait_until_async(lambda: cluster.watches(KIND) == 1)
            cluster.send(KIND, b"no json\n")
            await wait_until_async(lambda: len(found.problems) == 1)
            cluster.cut()
            await wait_until_async(lambda: found.problems == ())

    asyncio.run(run())


def test_invalid_object_keeps_its_last_form_until_a_later_one_takes_its_name(
    cluster: ApiServer, environment
):
    cluster.put(KIND, pod("a", "10.0.0.1", uid="u1"))
    cluster.put(KIND, {"metadata": {"name": "bad", "uid": "u9"}, "status": {"podIP": 5}})

    async def run() -> None:
        async with following(environment) as found:
            await names(found, "a")
            assert "podIP" in " ".join(found.problems)
            broken = pod("a", "10.0.0.1", uid="u1")
            broken["status"]["podIP"] = ["no", "text"]
            cluster.put(KIND, broken)
            await wait_until_async(lambda: len(found.problems) == 2)
            assert found.objects["a"].status.pod_ip == "10.0.0.1"
            broken["metadata"]["uid"] = "u2"
            cluster.put(KIND, broken)
            await names(found)
            cluster.put(KIND, pod("a", "10.0.0.7", uid="u2"))
            await names(found, "a")
            cluster.remove(KIND, "bad")
            await wait_until_async(lambda: found.problems == ())

    asyncio.run(run())


def test_number_of_objects_is_limited(cluster: ApiServer, environment, monkeypatch):
    monkeypatch.setattr(module, "MAX_OBJECTS", 2)
    for name in "ab":
        cluster.put(KIND, pod(name, "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await names(found, "a", "b")
            cluster.put(KIND, pod("c", "10.0.0.3"))
            await wait_until_async(lambda: found.counts.refused_objects == 1)
            assert sorted(found.objects) == ["a", "b"]
            assert "more than 2" in found.problems[0]

    asyncio.run(run())


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_missing_right_is_named_with_its_verb_and_resource(cluster: ApiServer, environment, verb):
    cluster.put(KIND, pod("a", "10.0.0.1"))
    cluster.denied.add((verb, "pods"))

    async def run() -> None:
        async with following(environment) as found:
            await wait_until_async(lambda: found.counts.failures >= 2)
            assert found.error is not None
            assert f"verb '{verb}' on resource 'pods' of API group ''" in found.error
            assert "403" in found.error
            cluster.denied.clear()
            cluster.put(KIND, pod("b", "10.0.0.1"))
            await names(found, "a", "b")
            assert found.error is None

    asyncio.run(run())


def test_kind_that_is_not_installed_is_named(cluster: ApiServer, environment):
    cluster.missing.add("pods")

    async def run() -> None:
        async with following(environment) as found:
            await wait_until_async(lambda: "not installed" in (found.error or ""))

    asyncio.run(run())


def test_rotated_token_is_read_again(cluster: ApiServer, environment, tmp_path, caplog):
    cluster.put(KIND, pod("a", "10.0.0.1"))

    async def run() -> None:
        async with following(environment) as found:
            await names(found, "a")
            cluster.token = "next-token"
            cluster.cut()
            await wait_until_async(lambda: "credentials" in (found.error or ""))
            cluster.kubeconfig(tmp_path)
            cluster.put(KIND, pod("b", "10.0.0.2"))
            await names(found, "a", "b")
            assert "token" not in " ".join(found.problems) + (found.error or "")

    with caplog.at_level(logging.DEBUG):
        asyncio.run(run())
    assert "next-token" not in caplog.text


def test_missing_kubeconfig_is_named_and_waited_for(cluster: ApiServer, tmp_path):
    environment = {"KUBECONFIG": str(tmp_path / "kubeconfig")}

    async def run() -> None:
        async with following(environment) as found:
            await wait_until_async(lambda: str(tmp_path) in (found.error or ""))
            cluster.put(KIND, pod("a", "10.0.0.1"))
            cluster.kubeconfig(tmp_path)
            await names(found, "a")

    asyncio.run(run())


def test_labels_and_names_reach_the_server(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1", labels={"app": "x"}))
    cluster.put(KIND, pod("b", "10.0.0.2", labels={"app": "y"}))

    async def run() -> None:
        async with following(environment, labels="app=x") as found:
            await names(found, "a")
        async with following(environment, name="b") as found:
            await names(found, "b")

    asyncio.run(run())


def test_reflectors_that_start_together_share_one_session(cluster: ApiServer, environment):
    cluster.put(KIND, pod("a", "10.0.0.1"))

    async def run() -> None:
        access = Access(environment)
        opened = 0
        original = access._open

        async def count() -> Any:
            nonlocal opened
            opened += 1
            # Credentials of a plug-in take a while.
            await asyncio.sleep(0)
            return await original()

        access._open = count
        pair = [Reflector(access, PODS, "prod", lambda: None, timing=QUICK) for _ in range(2)]
        tasks = [asyncio.create_task(each.run()) for each in pair]
        await wait_until_async(lambda: all(each.is_synced for each in pair))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await access.forget()
        assert opened == 1

    asyncio.run(run())
