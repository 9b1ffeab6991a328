"""Dynamo's selection API over HTTP, side by side with Dynamo's own service under Dynamo's cost."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.select.conftest import Serve, Served

pytest.importorskip("dynamo.llm")

PROMPT = list(range(100))


class Dynamo:
    """`dynamo.llm.SelectionService` with the interface of the HTTP service."""

    def __init__(self) -> None:
        from dynamo.llm import SelectionService

        self.loop = asyncio.new_event_loop()
        self.service = SelectionService(indexer_threads=1)

    def close(self) -> None:
        self.service.shutdown()
        self.loop.close()

    def run(self, call: Callable[[], Any]) -> tuple[int, Any]:
        from dynamo.llm.exceptions import SelectionServiceError

        async def run() -> Any:
            answer = call()
            return await answer if hasattr(answer, "__await__") else answer

        try:
            return 200, self.loop.run_until_complete(run())
        except SelectionServiceError as error:
            return error.status_code, {"error": str(error)}
        except ValueError as error:
            return 400, {"error": str(error)}


def worker(number: int) -> dict[str, Any]:
    return {
        "worker_id": number,
        "model_name": "m",
        "endpoint": f"http://w{number}",
        "block_size": 16,
        "data_parallel_start_rank": 0,
        "data_parallel_size": 1,
        "total_kv_blocks": 4096,
        "max_num_batched_tokens": 8192,
    }


@pytest.fixture
def dynamo() -> Iterator[Dynamo]:
    dynamo = Dynamo()
    try:
        for number in (1, 2):
            # No engine listens there: both services see empty caches.
            events = {"kv_events_endpoints": {0: f"tcp://127.0.0.1:{number}"}}
            dynamo.run(lambda: dynamo.service.upsert_worker(worker(number) | events))  # noqa: B023
        yield dynamo
    finally:
        dynamo.close()


@pytest.fixture
def ours(serve: Serve) -> Iterator[Served]:
    with serve(workers=0) as service:
        for number in (1, 2):
            answer = service.http("POST", "/workers", worker(number))
            assert answer.status == 201
            assert answer.body["lifecycle"] == "schedulable"
        yield service


def without(answer: Any, *names: str) -> Any:
    return {key: value for key, value in answer.items() if key not in names}


def test_every_call_has_dynamos_answer(ours: Served, dynamo: Dynamo) -> None:
    """Sessions of random calls: choices, loads, statuses and error texts are the same."""
    service = dynamo.service
    choice = random.Random(7)
    open_ids: list[str] = []
    pending: list[str] = []
    compared = 0
    for step in range(300):
        prompt = [choice.randrange(9)] * choice.choice((40, 200, 900))
        only = choice.choice((1, 2))
        body = {"model_name": "m", "token_ids": prompt, "allowed_worker_ids": [only]}
        name = f"s{step}"
        kind = choice.randrange(9)
        target = open_ids or [name]
        known = choice.choice(target)
        if kind == 0:
            call = {**body, "selection_id": name}
            theirs = dynamo.run(lambda: service.select(call))  # noqa: B023
            mine = ours.http("POST", "/select", call)
            pending.append(name)
        elif kind == 1:
            call = {**body, "selection_id": choice.choice([name, known])}
            theirs = dynamo.run(lambda: service.select_and_reserve(call))  # noqa: B023
            mine = ours.http("POST", "/select_and_reserve", call)
            open_ids += [name] if call["selection_id"] == name else []
        elif kind == 2:
            name = pending.pop() if pending else name
            call = {"selection_id": name, "model_name": "m"}
            theirs = dynamo.run(lambda: service.create_reservation(call))  # noqa: B023
            mine = ours.http("POST", "/reservations", call)
            open_ids += [name] if mine.status == 201 else []
        elif kind == 3:
            call = {
                **body,
                "selection_id": name,
                "worker_id": choice.choice((1, 2, 9)),
                "dp_rank": 0,
                # Without this figure Dynamo books no prefill on a worker that the caller names.
                "effective_prefill_tokens": len(prompt) + choice.choice((0, 0, 0, 1)),
            }
            theirs = dynamo.run(lambda: service.create_reservation(call))  # noqa: B023
            mine = ours.http("POST", "/reservations", call)
            open_ids += [name] if mine.status == 201 else []
        elif kind == 4:
            theirs = dynamo.run(lambda: service.prefill_complete(known))  # noqa: B023
            mine = ours.http("POST", f"/reservations/{known}/prefill_complete")
        elif kind == 5:
            theirs = dynamo.run(lambda: service.free_reservation(known))  # noqa: B023
            mine = ours.http("DELETE", f"/reservations/{known}")
            open_ids = [each for each in open_ids if each != known]
        elif kind == 6:
            theirs = dynamo.run(lambda: service.loads())
            mine = ours.http("GET", "/loads")
            theirs[1][0]["loads"] = _loads(theirs[1][0]["loads"])
            mine.body[0]["loads"] = _loads(mine.body[0]["loads"])
        elif kind == 7:
            body.pop("allowed_worker_ids")
            theirs = dynamo.run(lambda: service.potential_loads(body))  # noqa: B023
            mine = ours.http("POST", "/potential_loads", body)
            mine = mine._replace(body=_loads(mine.body))
            theirs = (theirs[0], _loads(theirs[1]))
        else:
            body.pop("allowed_worker_ids")
            theirs = dynamo.run(lambda: service.overlap_scores(body))  # noqa: B023
            mine = ours.http("POST", "/overlap_scores", body)
        status, answer = theirs
        where = f"step {step}, kind {kind}"
        assert mine.status in ((200, 201) if status == 200 else (status,)), where
        if kind not in (4, 5) or status != 200:
            assert mine.body == json.loads(json.dumps(answer)), where
            compared += 1
    assert compared > 200


def _loads(body: Any) -> Any:
    """Loads in order of the workers."""
    return sorted(body, key=lambda load: load["worker_id"]) if isinstance(body, list) else body


def test_choices_follow_the_load_as_dynamos_do(ours: Served, dynamo: Dynamo) -> None:
    """With unequal loads there are no ties, so both services must choose the same worker."""
    choice = random.Random(3)
    agreed = 0
    for step in range(60):
        name = f"s{step}"
        prompt = [choice.randrange(1 << 20) for _ in range(choice.choice((64, 640, 3000)))]
        loads = {load["worker_id"]: load for load in ours.http("GET", "/loads").body[0]["loads"]}
        call = {"selection_id": name, "model_name": "m", "token_ids": prompt}
        if loads[1] | {"worker_id": 0} == loads[2] | {"worker_id": 0}:
            call["allowed_worker_ids"] = [1]
        status, theirs = dynamo.run(lambda: dynamo.service.select_and_reserve(call))  # noqa: B023
        mine = ours.http("POST", "/select_and_reserve", call).body
        assert status == 200
        assert mine["worker_id"] == theirs["worker_id"], f"step {step}"
        agreed += "allowed_worker_ids" not in call
        if step % 3 == 2:
            gone = f"s{step - choice.randrange(3)}"
            dynamo.run(lambda: dynamo.service.free_reservation(gone))  # noqa: B023
            ours.http("DELETE", f"/reservations/{gone}")
    assert agreed > 30


def test_hashes_stand_in_for_tokens(ours: Served) -> None:
    from dynamo.llm import compute_block_hash_for_seq

    by_tokens = ours.http("POST", "/select_and_reserve", {"model_name": "m", "token_ids": PROMPT})
    hashes = compute_block_hash_for_seq(PROMPT, 16)
    body = {"model_name": "m", "block_hashes": hashes, "sequence_hashes": [], "isl_tokens": 100}
    by_hashes = ours.http("POST", "/select_and_reserve", body)
    assert by_hashes.body["sequence_hashes"] == by_tokens.body["sequence_hashes"]
    too_many = ours.http("POST", "/select", body | {"isl_tokens": 10})
    assert too_many.status == 400


def test_bodies_that_are_wrong_get_400_and_a_text(ours: Served) -> None:
    for path, body in [
        ("/select", {"model_name": "m"}),
        ("/select", {"model_name": "m", "token_ids": "x"}),
        ("/select", {"model_name": "m", "block_hashes": [1]}),
        ("/reservations", {"model_name": "m"}),
        ("/workers", {"worker_id": -1}),
    ]:
        answer = ours.http("POST", path, body)
        assert answer.status == 400, path
        assert answer.body["error"]
    assert ours.http("POST", "/select").status == 415
    assert ours.http("GET", "/nothing") == (404, {"error": "route not found"})


def test_workers_change_and_leave(ours: Served) -> None:
    assert ours.http("GET", "/ready").body["schedulable_workers"] == 2
    assert (
        ours.http("PATCH", "/workers/1", {"endpoint": "http://new"}).body["endpoint"]
        == "http://new"
    )
    allowed = {"model_name": "m", "token_ids": PROMPT, "allowed_worker_ids": [1]}
    assert ours.http("POST", "/select", allowed).body["endpoint"] == "http://new"
    incomplete = ours.http("PATCH", "/workers/1", {"endpoint": None}).body
    assert incomplete["not_schedulable_reasons"] == ["endpoint is required"]
    assert ours.http("POST", "/select", allowed).status == 503
    assert ours.http("DELETE", "/workers/1").body["lifecycle"] == "unschedulable"
    assert ours.http("DELETE", "/workers/1").status == 404
    assert ours.http("DELETE", "/workers/2").status == 200
    assert ours.http("GET", "/ready").status == 503
    assert ours.http("GET", "/health").body == {"status": "ok"}
