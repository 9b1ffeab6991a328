"""Spans and decision records of the picker: below the proxy's trace, and ended with the answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.gateway.test_spans import PARENT, TRACE, Collector
from tests.picker.conftest import Serve
from tests.picker.streams import Decision, Refused, Stream
from tests.waiting import wait_until

USAGE = {
    "prompt_tokens": 32,
    "completion_tokens": 3,
    "prompt_tokens_details": {"cached_tokens": 16},
}
CONTEXT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=a"}
BODY = json.dumps({"model": "m", "prompt": list(range(300, 332))}).encode()


@pytest.fixture
def tracing() -> Iterator[tuple[Collector, dict[str, Any]]]:
    """A collector, and the settings that send spans to it."""
    collector = Collector()
    settings = {"endpoint": collector.url, "service_name": "picker-a"}
    yield collector, settings | {"sampler": "parentbased_always_on", "ratio": 1.0}
    collector.close()


def answered(stream: Stream, headers: dict[str, str]) -> Decision:
    """Send one request and its answer, to the end."""
    stream.request({"x-request-id": "r1", **headers})
    stream.body(BODY)
    decision = stream.decision()
    assert isinstance(decision, Decision)
    stream.request_body()
    stream.answer(headers={"content-type": "application/json"})
    stream.next()
    stream.answer_body(json.dumps({"choices": [], "usage": USAGE}).encode(), end=True)
    stream.next()
    stream.close()
    return decision


def test_a_request_has_spans_below_the_proxys_and_a_record(
    serve: Serve, tracing: Any, tmp_path: Path
) -> None:
    collector, settings = tracing
    records = {"dir": str(tmp_path), "file_bytes": 1 << 20, "all_bytes": 1 << 22, "key_file": None}
    with serve(tracing=settings, records=records) as picker:
        decision = answered(Stream(picker.channel), CONTEXT)
        wait_until(picker.is_idle, "the end of the request")
        picker.picker.stop()
    server, why = collector.spans
    assert (server.name, server.trace, server.parent) == ("text_completion m", TRACE, PARENT)
    assert (why.name, why.trace, why.parent) == ("wardrop.decide", TRACE, server.span)
    assert decision.headers["traceparent"] == f"00-{TRACE}-{server.span}-01"
    assert "tracestate" not in decision.removed, "the client's state goes on with its trace"
    said = server.attributes
    assert (said["http.response.status_code"], said["wardrop.outcome"]) == (200, "finished")
    assert said["gen_ai.usage.cache_read.input_tokens"] == 16
    assert why.attributes["wardrop.candidates"] == 2
    assert not server.is_error
    files = sorted(tmp_path.glob("*.jsonl"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    [record] = [line for line in lines if line["schema"] == "wardrop.record/1"]
    assert (record["request_id"], record["outcome"]["how"]) == ("r1", "finished")
    assert (len(record["block_ids"]), record["outcome"]["cached_tokens"]) == (2, 16)


def test_a_request_without_a_trace_begins_one_and_a_foreign_state_ends(
    serve: Serve, tracing: Any
) -> None:
    collector, settings = tracing
    with serve(tracing=settings) as picker:
        decision = answered(Stream(picker.channel), {"tracestate": "vendor=a"})
        assert "tracestate" in decision.removed
        wait_until(picker.is_idle, "the end of the request")
        picker.picker.stop()
    server, _ = collector.spans
    assert server.parent == ""
    assert decision.headers["traceparent"].split("-")[1:3] == [server.trace, server.span]


def test_a_refusal_of_the_picker_is_an_error_of_its_span(serve: Serve, tracing: Any) -> None:
    collector, settings = tracing
    with serve(endpoints=[], tracing=settings) as picker:
        stream = Stream(picker.channel)
        stream.request(CONTEXT)
        stream.body(BODY)
        refused = stream.decision()
        assert isinstance(refused, Refused)
        stream.close()
        wait_until(picker.is_idle, "the end of the request")
        picker.picker.stop()
    server = collector.spans[0]
    assert (server.attributes["http.response.status_code"], server.is_error) == (503, True)


def test_without_spans_the_proxys_trace_stays_as_it_is(serve: Serve) -> None:
    with serve() as picker:
        assert "traceparent" not in answered(Stream(picker.channel), CONTEXT).headers
