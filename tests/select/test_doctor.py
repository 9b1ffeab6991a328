"""`wardrop doctor` on `wardrop select`: the doctor reserves, asks the engine itself, and frees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.doctor.diagnosis import diagnose
from tests.fleet.engine import BLOCK_TOKENS, Engine
from tests.select.conftest import Served
from tests.waiting import DEADLINE_S

FEEDS = {"feed": {}, "routing": {"predicted": {"used": "beside"}}}


@pytest.fixture
def engines() -> Iterator[Callable[..., Engine]]:
    """Make engines; all are closed at the end."""
    made: list[Engine] = []

    def make(**options: Any) -> Engine:
        made.append(Engine(**options))
        return made[-1]

    yield make
    for engine in made:
        engine.close()


def register(service: Served, *engines: Engine, block_size: int = BLOCK_TOKENS) -> None:
    for number, engine in enumerate(engines, 1):
        events = engine.events
        body = {"worker_id": number, "model_name": "m", "endpoint": engine.url}
        body["block_size"] = block_size
        if events is not None:
            body["kv_events_endpoints"] = {"0": f"tcp://127.0.0.1:{events.events_port}"}
            body["replay_endpoint"] = f"tcp://127.0.0.1:{events.replay_port}"
        assert service.http("POST", "/workers", body).status == 201
        if events is not None:
            assert events.subscribed.wait(DEADLINE_S)


def test_healthy_workers_pass(serve, engines):
    with serve(workers=0) as service:
        register(service, engines(), engines())
        code, found = diagnose(service.url)
        assert code == 0, found
        for name in ("versions", "control", "clock", "workers", "feeds", "trust", "blocks"):
            assert found[name]["level"] == "ok", found[name]
        assert "128 cached tokens predicted, 128 reported" in found["blocks"]["text"]
        assert not {"pin", "salt", "prompts", "tokens"} & set(found)
        assert service.status()["reservations"] == 0, "the doctor frees what it reserves"


def test_another_block_size_is_found(serve, engines):
    with serve(workers=0) as service:
        register(service, engines(), block_size=2 * BLOCK_TOKENS)
        code, found = diagnose(service.url)
        assert (code, found["blocks"]["level"]) == (1, "failure")
        assert "0 cached tokens predicted" in found["blocks"]["text"]


def test_an_endpoint_that_does_not_answer_is_found(serve, engines):
    with serve(workers=0) as service:
        engine = engines()
        register(service, engine)
        engine.status = 503
        code, found = diagnose(service.url)
        assert (code, found["canary"]["level"]) == (1, "failure")
        assert "got status 503" in found["canary"]["text"]
        assert service.status()["reservations"] == 0


def test_a_service_without_workers_says_what_to_do(serve):
    with serve(workers=0) as service:
        code, found = diagnose(service.url)
        assert (code, found["workers"]["level"]) == (1, "failure")
        assert "POST /workers" in found["workers"]["advice"]
