"""Planted causes on a real Dynamo: page, doctor and receipt lead to each, as the how-to page says.

The first problem of the page is read from the same snapshots that the page shows.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from tests.live.load import Load
from tests.live.router import Router, running
from tests.waiting import wait_until
from typer.testing import CliRunner

from wardrop.commands.admin_client import ask
from wardrop.commands.doctor import app as doctor
from wardrop.dynamo.embedded import Fleet, FleetSpec
from wardrop.dynamo.ports import free_port
from wardrop.service.live.problems import short_name
from wardrop.terminal.live_reader import snapshots

pytestmark = [
    pytest.mark.live,
    pytest.mark.heavy,
    pytest.mark.usefixtures("private_network"),
    pytest.mark.timeout(240),
]


@contextmanager
def served(fleet: Fleet, *arguments: str) -> Iterator[tuple[Router, str]]:
    """A router in front of a fleet, and the address of its admin API."""
    port = free_port()
    with running(fleet, "--admin-port", str(port), *arguments) as router:
        yield router, f"http://127.0.0.1:{port}"


def await_problem(admin: str, text: str) -> str:
    """The problem with a text, as soon as the page shows it."""
    found: list[str] = []
    with snapshots(admin) as arriving:

        def is_shown() -> bool:
            problems = [
                problem.text for model in next(arriving).models for problem in model.problems
            ]
            found[:] = problems
            return any(text in problem for problem in problems)

        wait_until(is_shown, f"{text!r} on the page", 120)
    return next(problem for problem in found if text in problem)


def ages(admin: str) -> list[float | None]:
    """Ages of the last heartbeats."""
    (pool,) = ask(admin, "/v1/status")["models"][0]["pools"]
    return [worker["heartbeat_age_s"] for worker in pool["workers"]]


def findings(admin: str) -> dict[str, dict]:
    ran = CliRunner().invoke(doctor, ["--admin-url", admin, "--json"])
    return {one["check"]: one for one in json.loads(ran.stdout)["findings"]}


def test_hung_worker_is_named_by_page_and_doctor():
    with (
        Fleet(FleetSpec(workers=3, speedup_ratio=10)) as fleet,
        served(fleet) as (_, admin),
    ):
        hung = fleet.workers[1]
        # Silence counts for a worker that has sent a heartbeat.
        wait_until(lambda: all(ages(admin)), "a heartbeat of every worker")
        os.kill(hung.child.pid, signal.SIGSTOP)
        try:
            name = short_name(str(hung.instances[0]), 0)
            assert name in await_problem(admin, "unavailable")
            ran = CliRunner().invoke(doctor, ["--admin-url", admin, "--json", "--no-canaries"])
            found = {one["check"]: one for one in json.loads(ran.stdout)["findings"]}
            assert f"{hung.instances[0]}/0 (silent)" in found["workers"]["text"]
        finally:
            os.kill(hung.child.pid, signal.SIGCONT)


def test_engines_without_kv_events_are_named_by_page_and_doctor():
    arguments = ("--no-enable-prefix-caching",)
    spec = FleetSpec(workers=2, speedup_ratio=100, mocker_arguments=arguments)
    with Fleet(spec) as fleet, served(fleet) as (router, admin):
        prompt = random.Random(2).choices(range(300, 3000), k=8 * spec.block_size)
        router.complete(prompt)
        assert "wardrop doctor" in await_problem(admin, "sent no KV event")
        blocks = findings(admin)["blocks"]
        assert blocks["level"] == "failure"
        assert "KV event" in blocks["text"]


def test_slow_worker_is_named_by_page_and_receipt():
    spec = FleetSpec(workers=3, blocks=8192)
    with Fleet(spec) as fleet:
        fleet.spec = replace(spec, speedup_ratio=0.25)
        slow = fleet.add_worker()
        fleet.spec = spec
        flags = ("--policy", "round_robin", "--no-queue")
        with served(fleet, *flags) as (router, admin), Load(router, 1000, 2) as load:
            load.rate = 8.0
            name = short_name(str(slow.instances[0]), 0)
            assert name in await_problem(admin, "slower than 2 times")
            load.rate = 0.0
            # With the price in force, the receipt shows the cost of the slow worker in seconds.
            ask(admin, "/v1/settings", {"changes": {"policy": "toll"}, "reason": "price by time"})
            prompt = random.Random(4).choices(range(300, 3000), k=64 * spec.block_size)
            answer = router.complete(prompt)
            receipt = ask(admin, f"/v1/receipts/{answer.headers['x-request-id']}")
            (leg,) = receipt["legs"]
            own = {
                one["worker"]["instance"]: one["parts"]["own_first_token_s"]
                for one in leg["candidates"]
            }
            assert max(own, key=lambda worker: own[worker]) == slow.instances[0]
            assert leg["worker"]["instance"] != slow.instances[0]


def test_overload_is_named_by_the_page():
    spec = FleetSpec(workers=2, process_per_worker=False, blocks=8192)
    with Fleet(spec) as fleet, served(fleet) as (_router, admin), Load(_router, 2000, 4) as load:
        load.rate = 6.0
        wait_until(lambda: load.answered >= 40, "answers that the baseline rests on")
        load.rate = 70.0
        assert "add workers" in await_problem(admin, "The fleet is saturated")
        load.rate = 0.0
