"""Wardrop's decision in the traces of Dynamo's frontend."""

from __future__ import annotations

from typing import Any

import pytest
from tests.frontend.native import running
from tests.frontend.test_live import prompt
from tests.gateway.test_spans import PARENT, TRACE, Collector, service, values
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network", "binary")]


class DynamoCollector(Collector):
    """Takes the spans of every maker, as `(maker, span)`."""

    def __post_init__(self) -> None:
        self.all: list[tuple[str, Any]] = []
        super().__post_init__()

    def take(self, body: bytes) -> None:
        for group in service.ExportTraceServiceRequest.FromString(body).resource_spans:
            is_old = hasattr(group, "instrumentation_library_spans")
            for scope in group.instrumentation_library_spans if is_old else group.scope_spans:
                maker = (scope.instrumentation_library if is_old else scope.scope).name
                self.all += [(maker, span) for span in scope.spans]


def test_decision_is_a_span_below_dynamos_own_in_the_trace_of_the_client():
    collector = DynamoCollector()
    environment = {
        "OTEL_EXPORT_ENABLED": "1",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
        "OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": collector.url.replace("traces", "logs"),
    }
    spec = FleetSpec(workers=2, speedup_ratio=20, process_per_worker=False)
    try:
        with Fleet(spec) as fleet, running(fleet, environment=environment) as native:
            header: dict[str, Any] = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            body = native.body(prompt(1), 3)
            assert native.post("/v1/completions", body, **header).status == 200
            unsampled: dict[str, Any] = {"traceparent": f"00-{'1' * 32}-{PARENT}-00"}
            assert native.post("/v1/completions", body, **unsampled).status == 200

            def ours() -> list[Any]:
                return [span for maker, span in collector.all if maker == "wardrop"]

            wait_until(lambda: len(ours()) > 0, "the span of the decision", 60.0)
        # The frontend has ended, and its exporter with it: no span is on its way.
        (span,) = ours()
        assert span.name == "wardrop.decide"
        assert span.trace_id.hex() == TRACE
        dynamos = {s.span_id: s for maker, s in collector.all if maker != "wardrop"}
        assert span.parent_span_id in dynamos, "its parent is a span of Dynamo"
        parent = dynamos[span.parent_span_id]
        assert parent.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= parent.end_time_unix_nano
        attributes = values(span.attributes)
        assert attributes["wardrop.policy"] == "toll"
        assert attributes["wardrop.candidates"] == 2
        assert attributes["gen_ai.usage.output_tokens"] == 3
        assert attributes["wardrop.outcome"] == "finished"
        assert int(attributes["wardrop.worker.instance"]) in spec_instances(fleet)
    finally:
        collector.close()


def spec_instances(fleet: Fleet) -> set[int]:
    """Instances of the fleet's workers, also after their end."""
    return {instance for worker in fleet.workers for instance in worker.instances}
