"""Dynamo 1.4.2 behind the same router: its frontends, workers, events and block reader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.live.router import Router, instance, running, served_by
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec, split_fleet

pytestmark = [pytest.mark.live, pytest.mark.heavy]


@pytest.fixture(scope="module")
def python(private_network: None) -> str:
    given = os.environ.get("WARDROP_DYNAMO_142_PYTHON")
    path = Path(given) if given else Path(__file__).parents[2] / ".venv-142" / "bin" / "python"
    if not path.exists():
        pytest.skip(f"NO DYNAMO 1.4.2 at {path}: `make test-all` installs it")
    return str(path)


@pytest.fixture(scope="module")
def fleet(python: str) -> Iterator[Fleet]:
    with Fleet(FleetSpec(workers=3, speedup_ratio=20, python=python)) as fleet:
        assert fleet.version == "1.4.2"
        yield fleet


@pytest.fixture(scope="module")
def router(fleet: Fleet) -> Iterator[Router]:
    with running(fleet, "--dynamo-python", fleet.spec.python) as router:
        yield router


def prompt(number: int, tokens: int) -> list[int]:
    return [1000 + (number * 977 + i * 31) % 7000 for i in range(tokens)]


def test_second_turn_goes_where_the_first_left_its_blocks(router: Router):
    for number in range(4):
        holder = instance(router.complete_and_learn(prompt(number, 165)))
        second = router.complete(prompt(number, 320))
        assert served_by(second) == (holder, holder)
        # The mock workers of this version do not report cached tokens.
        assert int(second.headers["x-wardrop-overlap-blocks"]) == 10


def test_chat_is_handed_over_or_served_with_the_hint(router: Router):
    messages = [{"role": "user", "content": "one two three four five " * 10}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 2}
    answer = router.post("/v1/chat/completions", body)
    assert answer.status == 200
    assert "x-wardrop-worker" in answer.headers


def test_new_router_reads_the_blocks_that_the_workers_hold(fleet: Fleet, router: Router):
    holder = instance(router.complete(prompt(50, 160)))
    with running(fleet, "--dynamo-python", fleet.spec.python) as second:
        wait_until(lambda: second.metrics().total("wardrop_worker_held_blocks") >= 9, "bootstrap")
        assert instance(second.complete(prompt(50, 200))) == holder


def test_split_pins_both_roles(python: str):
    spec = split_fleet("2x2", FleetSpec(speedup_ratio=20, python=python))
    with Fleet(spec) as fleet, running(fleet, "--dynamo-python", python) as router:
        prefill = {i for w in fleet.workers if w.role == "prefill" for i in w.instances}
        pairs = [served_by(router.complete(prompt(n, 96))) for n in range(8)]
        assert {pair[0] for pair in pairs} == prefill
        assert not {pair[1] for pair in pairs} & prefill


def test_killed_worker_costs_no_request_after_the_first_refusal(python: str):
    spec = FleetSpec(workers=3, speedup_ratio=20, python=python)
    with Fleet(spec) as fleet, running(fleet, "--dynamo-python", python) as router:
        assert all(router.complete(prompt(n, 96)).status == 200 for n in range(9))
        (victim,) = fleet.workers[0].instances
        fleet.workers[0].child.kill()
        answers = [router.complete(prompt(100 + n, 96)).status for n in range(40)]
        wait_until(lambda: router.passes_over(victim), "the dead worker to be passed over")
        assert answers.count(200) == 40
