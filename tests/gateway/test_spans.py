"""Spans of requests: contexts, names, attributes, sampling, and a collector that is away."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.gateway.held import background, waits
from tests.waiting import wait_until

service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

PROMPT = [4711, 4712, 4713, 4714, *range(60)]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
USAGE = {
    "prompt_tokens": 64,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 16},
}


@dataclass
class Span:
    """One span as the collector received it."""

    name: str
    trace: str
    span: str
    parent: str
    kind: int
    start_ns: int
    end_ns: int
    is_error: bool
    attributes: dict[str, Any]
    resource: dict[str, Any]


@dataclass
class Collector:
    """A receiver of OTLP over HTTP, with the messages of the OpenTelemetry project."""

    status: int = 200
    spans: list[Span] = field(default_factory=list)
    exports: int = 0

    def __post_init__(self) -> None:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_arguments: Any) -> None:
                return

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.exports += 1
                if collector.status == 200 and self.path == "/v1/traces":
                    assert self.headers["content-type"] == "application/x-protobuf"
                    collector.take(body)
                self.send_response(collector.status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", "0")
                self.end_headers()

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def take(self, body: bytes) -> None:
        for group in service.ExportTraceServiceRequest.FromString(body).resource_spans:
            resource = values(group.resource.attributes)
            # xds-protos has the messages of an older OTLP: other names for the same bytes.
            is_old = hasattr(group, "instrumentation_library_spans")
            for scope in group.instrumentation_library_spans if is_old else group.scope_spans:
                made_by = scope.instrumentation_library if is_old else scope.scope
                assert made_by.name == "wardrop"
                for span in scope.spans:
                    self.spans.append(
                        Span(
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.kind,
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            span.status.code == 2,
                            values(span.attributes),
                            resource,
                        )
                    )

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


@pytest.fixture
def traced(serve, collector) -> Callable[..., Any]:
    """Start a gateway whose spans go to the collector."""

    def start(sampler: str = "parentbased_always_on", ratio: float = 1.0, **config: Any) -> Any:
        tracing = {
            "endpoint": config.pop("endpoint", collector.url),
            "service_name": "router-a",
            "sampler": sampler,
            "ratio": ratio,
        }
        routing = {"policy": {"name": "toll"}, **config.pop("routing", {})}
        return serve(tracing=tracing, routing=routing, **config)

    return start


def usage_answer(seen, conn):
    body = json.dumps({"choices": [], "usage": USAGE}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(body) + body


def parent_of(seen) -> list[str]:
    return seen.header("traceparent").split("-")


def test_one_server_span_continues_the_trace_and_one_child_holds_the_decision(
    upstream, traced, collector
):
    upstream.script = usage_answer
    running = traced()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=a"}
    assert running.complete(PROMPT, headers=headers)[0] == 200
    running.gateway.stop()
    server, decision = collector.spans
    assert (server.name, server.trace, server.parent) == ("text_completion m", TRACE, PARENT)
    assert (decision.name, decision.trace, decision.parent) == (
        "wardrop.decide",
        TRACE,
        server.span,
    )
    assert (server.kind, decision.kind) == (2, 1), "SERVER and INTERNAL"
    [seen] = upstream.seen
    assert parent_of(seen) == ["00", TRACE, server.span, "01"]
    assert seen.header("tracestate") == "vendor=a"
    assert seen.head.lower().count(b"traceparent") == 1
    said = server.attributes
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.model": "m",
        "gen_ai.usage.input_tokens": 64,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "wardrop.cached_tokens.predicted": 0,
        "wardrop.input_tokens": 64,
        "wardrop.outcome": "finished",
        "http.request.method": "POST",
        "url.path": "/v1/completions",
        "http.response.status_code": 200,
    }
    assert {name: said.get(name) for name in expected} == expected
    assert said["wardrop.ttft_seconds"] > 0
    assert not server.is_error
    why = decision.attributes
    pinned = seen.header("x-dynamo-worker-instance-id")
    assert (why["wardrop.policy"], why["wardrop.worker.instance"]) == ("toll", pinned)
    assert (why["wardrop.candidates"], why["wardrop.cause"]) == (2, "at_once")
    assert (why["wardrop.cached_tokens.predicted"], why["wardrop.waited_seconds"]) == (0, 0)
    parts = [value for name, value in why.items() if name.startswith("wardrop.part.")]
    assert sum(parts) == pytest.approx(why["wardrop.cost"])
    assert why["wardrop.part.own_first_token_seconds"] > 0
    assert server.start_ns <= decision.start_ns <= decision.end_ns <= server.end_ns
    assert server.resource["service.name"] == "router-a"
    assert not re.search(r"4711\D+4712", str(collector.spans)), "nothing of a prompt"
    assert running.metric("spans_exported_total") == 2
    assert running.metric("spans_dropped_total") == 0


def test_request_without_a_context_begins_a_trace_and_a_bad_context_is_not_passed_on(
    upstream, traced, collector
):
    running = traced()
    running.complete(PROMPT)
    bad = {"traceparent": f"00-{'0' * 32}-{PARENT}-01", "tracestate": "vendor=a"}
    running.complete(PROMPT, headers=bad)
    running.gateway.stop()
    servers = [span for span in collector.spans if span.kind == 2]
    assert len({span.trace for span in servers}) == 2
    assert [span.parent for span in servers] == ["", ""]
    for seen, span in zip(upstream.seen, servers, strict=True):
        assert parent_of(seen) == ["00", span.trace, span.span, "01"]
        assert seen.header("tracestate") is None


def test_wait_in_the_queue_and_its_gain_are_in_the_decision(traced, collector, engines):
    running = traced(workers=(1,), routing={"queue": {"backlog_s": 1e-9}})
    answers: list = []
    threads = background(running, 1, answers, {"x-request-id": "first"})
    assert engines.arrived.acquire(timeout=10)
    threads += background(running, 1, answers, {"x-request-id": "second"})
    waits(running, 1)
    engines.finish(threads)
    running.gateway.stop()
    decisions = [span for span in collector.spans if span.name == "wardrop.decide"]
    waited = max(decisions, key=lambda span: span.attributes["wardrop.waited_seconds"])
    seconds = waited.attributes["wardrop.waited_seconds"]
    assert 0 < seconds <= (waited.end_ns - waited.start_ns) / 1e9 + 1e-3
    assert "wardrop.gained_seconds" in waited.attributes
    assert waited.attributes["wardrop.cause"] == "room"


@pytest.mark.parametrize(
    ("sampler", "ratio", "flags", "has_spans"),
    [
        ("parentbased_always_on", 1.0, "00", False),
        ("parentbased_always_off", 1.0, "01", True),
        ("parentbased_always_off", 1.0, None, False),
        ("parentbased_traceidratio", 0.0, "01", True),
        ("parentbased_traceidratio", 0.0, None, False),
        ("parentbased_traceidratio", 1.0, None, True),
        ("traceidratio", 0.0, "01", False),
        ("always_off", 1.0, "01", False),
        ("always_on", 0.0, "00", True),
    ],
)
def test_sampler_decides_and_the_upstream_learns_it(
    upstream, traced, collector, sampler, ratio, flags, has_spans
):
    running = traced(sampler, ratio)
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"} if flags else {}
    running.complete(PROMPT, headers=headers)
    running.gateway.stop()
    assert len(collector.spans) == (2 if has_spans else 0)
    _, trace, span, sent = parent_of(upstream.seen[0])
    assert sent == ("01" if has_spans else "00")
    assert span != PARENT
    assert not flags or trace == TRACE


def test_share_of_the_traces_is_sampled(traced, collector):
    running = traced("parentbased_traceidratio", 0.5)
    for _ in range(60):
        running.complete(PROMPT)
    running.gateway.stop()
    servers = [span for span in collector.spans if span.kind == 2]
    # 60 draws at 0.5: outside of 10 to 50 with a probability below 1e-7.
    assert 10 < len(servers) < 50


def test_every_request_has_a_server_span_also_without_a_decision(upstream, traced, collector):
    running = traced(routing={"allow_client_pins": False})
    running.request("GET", "/v1/models")
    running.request("GET", "/no/such/route")
    running.request("POST", "/v1/completions", b"{broken")
    upstream.script = lambda seen, conn: b"HTTP/1.1 500 no\r\ncontent-length: 2\r\n\r\n{}"
    running.complete(PROMPT)

    def stream(seen, conn):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
        event = b'data: {"choices": [{"text": "a"}]}\n\n'
        # The last chunk is missing: the upstream breaks off.
        chunk = b"transfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(event), event)
        conn.sendall(head + chunk)

    upstream.script = stream
    running.complete(PROMPT, stream=True)
    running.request("GET", "/health")
    running.gateway.stop()
    servers = [span for span in collector.spans if span.kind == 2]
    said = [
        (span.name, span.attributes["http.response.status_code"], span.is_error) for span in servers
    ]
    assert said == [
        ("GET", 200, False),
        ("GET", 404, False),
        ("text_completion", 400, False),
        ("text_completion m", 500, True),
        ("text_completion m", 200, True),
    ], "the gateway's own pages have none"
    assert servers[3].attributes["error.type"] == "500"
    assert servers[4].attributes["error.type"] == "broken"


def test_client_that_leaves_ends_its_span(traced, collector, engines):
    running = traced(workers=(1,))
    conn = http.client.HTTPConnection("127.0.0.1", running.port)
    body = json.dumps({"model": "m", "prompt": PROMPT})
    conn.request("POST", "/v1/completions", body, {"content-type": "application/json"})
    assert engines.arrived.acquire(timeout=10)
    conn.sock.close()
    wait_until(lambda: len(collector.spans) == 2, "the span of a client that left")
    assert collector.spans[0].attributes["wardrop.outcome"] == "client_left"
    assert collector.spans[0].is_error


def test_collector_that_is_away_costs_spans_and_no_request(upstream, traced, collector):
    collector.status = 503
    running = traced()
    for _ in range(4):
        assert running.complete(PROMPT)[0] == 200
    wait_until(
        lambda: running.metric("spans_dropped_total", reason="export_failed") > 0,
        "spans that the collector refused",
    )
    assert running.metric("spans_exported_total") == 0
    collector.status = 200

    def exported() -> bool:
        assert running.complete(PROMPT)[0] == 200
        return running.metric("spans_exported_total") > 0

    wait_until(exported, "spans after the collector came back")
    collector.close()
    assert running.complete(PROMPT)[0] == 200


def test_without_tracing_the_context_passes_as_it_came(upstream, serve):
    running = serve()
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=a"}
    running.complete(PROMPT, headers=headers)
    running.complete(PROMPT)
    assert upstream.seen[0].header("traceparent") == headers["traceparent"]
    assert upstream.seen[0].header("tracestate") == "vendor=a"
    assert upstream.seen[1].header("traceparent") is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"endpoint": "https://host/v1/traces"}, "tracing.endpoint: got .*expected http://"),
        ({"ratio": 1.5}, "tracing.ratio: got 1.5, expected 0 to 1"),
        ({"sampler": "jaeger"}, "unknown variant `jaeger`, expected one of `always_on`"),
    ],
)
def test_options_that_cannot_work_are_refused(serve, change, expected):
    tracing = {
        "endpoint": "http://127.0.0.1:1/v1/traces",
        "service_name": "w",
        "sampler": "always_on",
        "ratio": 1.0,
    }
    with pytest.raises(ValueError, match=expected):
        serve(tracing=tracing | change)
