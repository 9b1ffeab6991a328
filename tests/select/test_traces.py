"""Decision records and spans of reservations: from the choice to the free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.test_spans import PARENT, TRACE, Collector
from tests.picker.processes import call
from tests.waiting import wait_until

from wardrop.traces import read_trace

PROMPT = list(range(300, 350))
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


@pytest.fixture
def collector() -> Iterator[Collector]:
    """A receiver of OTLP over HTTP."""
    made = Collector()
    yield made
    made.close()


def settings(collector: Collector | None, folder: Path | None) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    if collector is not None:
        sampler = {"sampler": "parentbased_always_on", "ratio": 1.0}
        chosen["tracing"] = {"endpoint": collector.url, "service_name": "select-a", **sampler}
    if folder is not None:
        sizes = {"file_bytes": 1 << 20, "all_bytes": 1 << 22, "key_file": None}
        chosen["records"] = {"dir": str(folder), **sizes}
    return chosen


def records(folder: Path) -> list[dict[str, Any]]:
    files = sorted(folder.glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [line for line in lines if line["schema"] == "wardrop.record/1"]


def test_a_reservation_has_a_record_and_spans(serve, collector, tmp_path: Path):
    with serve(**settings(collector, tmp_path)) as service:
        with service.client.reserve("first", "m", PROMPT) as reservation:
            reservation.first_token()
            reservation.output_tokens, reservation.cached_tokens_seen = 7, 16
        service.server.stop()
    [record] = records(tmp_path)
    assert (record["request_id"], record["input_tokens"]) == ("first", 50)
    assert len(record["block_ids"]) == 3
    outcome = record["outcome"]
    assert (outcome["how"], outcome["output_tokens"], outcome["cached_tokens"]) == (
        "finished",
        7,
        16,
    )
    assert 0 < outcome["ttft_s"] <= outcome["e2e_s"]
    [leg] = record["legs"]
    assert leg["worker"]["instance"] == reservation.worker_id
    assert (leg["candidates"], leg["cause"]) == (2, "at_once")
    server, decision = collector.spans
    assert (decision.name, decision.parent) == ("wardrop.decide", server.span)
    assert decision.attributes["wardrop.worker.instance"] == str(reservation.worker_id)
    assert server.attributes["gen_ai.usage.output_tokens"] == 7
    assert server.attributes["wardrop.outcome"] == "finished"
    assert server.attributes["url.path"] == "/wardrop.v1.Selection/Reserve"
    assert not server.is_error


def test_a_reservation_over_http_continues_the_callers_trace(serve, collector):
    with serve(**settings(collector, None)) as service:
        body = {"selection_id": "one", "model_name": "m", "token_ids": PROMPT}
        url = f"{service.url}/select_and_reserve"
        assert call("POST", url, body, CONTEXT).status == 200
        assert service.http("DELETE", "/reservations/one").status == 200
        service.server.stop()
    server, _ = collector.spans
    assert (server.trace, server.parent) == (TRACE, PARENT)
    assert server.attributes["url.path"] == "/select_and_reserve"


def test_a_reservation_that_nobody_frees_is_written_down_as_left(serve, tmp_path: Path):
    with serve(reservation_ttl_ms=50, **settings(None, tmp_path)) as service:
        service.client.reserve("left", "m", PROMPT)
        wait_until(lambda: service.status()["reservations"] == 0, "the end of the reservation")
        service.server.stop()
    [record] = records(tmp_path)
    assert record["outcome"]["how"] == "client_left"


def test_a_reservation_without_a_worker_is_written_down_as_refused(
    serve, collector, tmp_path: Path
):
    with serve(**settings(collector, tmp_path)) as service:
        body = {"model_name": "m", "token_ids": PROMPT, "allowed_worker_ids": [99]}
        assert service.http("POST", "/select_and_reserve", body).status == 503
        service.server.stop()
    [record] = records(tmp_path)
    assert (record["outcome"]["how"], record["outcome"]["status"]) == ("refused", 503)
    assert collector.spans[0].is_error


def test_replay_reads_the_records_of_the_service(serve, tmp_path: Path):
    with serve(**settings(None, tmp_path)) as service:
        for number in range(3):
            with service.client.reserve(f"r{number}", "m", PROMPT) as reservation:
                reservation.output_tokens = 3
        service.server.stop()
    rows = read_trace(tmp_path).rows
    assert [(row.input_tokens, row.output_tokens) for row in rows] == [(50, 3)] * 3
    assert len({row.hash_ids for row in rows}) == 1
