"""The endpoint picker protocol, message by message: a gRPC client stands for a gateway."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest
from envoy.service.ext_proc.v3 import external_processor_pb2 as messages
from google.protobuf import struct_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.picker.conftest import FIRST, SECOND, THIRD, Serve, Served
from tests.picker.streams import Decision, Refused, Stream, header_map
from tests.waiting import wait_until


def prompt(tokens: int = 64, first: int = 0, **more: Any) -> bytes:
    body = {"model": "m", "prompt": list(range(first, first + tokens)), **more}
    return json.dumps(body).encode()


def place(served: Served, body: bytes, headers: dict[str, str] | None = None, **more: Any) -> Any:
    """One request up to its decision."""
    stream = Stream(served.channel)
    stream.request(headers, **more)
    stream.body(body)
    return stream, stream.decision()


def usage(cached: int, prompt_tokens: int = 64) -> bytes:
    details = {"cached_tokens": cached}
    counts = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 3,
        "prompt_tokens_details": details,
    }
    return json.dumps({"choices": [{"index": 0, "text": "x"}], "usage": counts}).encode()


def finish(stream: Stream, body: bytes, content_type: str = "application/json") -> bytes:
    """Let the worker answer; what comes back of the answer."""
    stream.answer(headers={"content-type": content_type})
    stream.answer_body(body, end=True)
    assert stream.next().WhichOneof("response") == "response_headers"
    piece = stream.next().response_body.response.body_mutation.streamed_response
    assert piece.end_of_stream
    stream.close()
    return piece.body


def test_header_and_metadata_name_one_worker_and_the_body_comes_back_whole(picker: Served) -> None:
    filler = os.urandom(512 << 10).hex()
    body = prompt(user=filler)
    assert len(body) > 1 << 20
    stream, decision = place(picker, body)
    assert decision.address in (FIRST, SECOND)
    assert stream.request_body() == body
    answer = os.urandom(100_000)
    assert finish(stream, answer) == answer
    wait_until(picker.is_idle, "the end of the booking")


def test_a_prompt_goes_to_the_worker_that_had_its_prefix(picker: Served) -> None:
    homes = {}
    for conversation in range(8):
        stream, decision = place(picker, prompt(256, conversation * 1000))
        homes[conversation] = decision.address
        stream.request_body()
        finish(stream, usage(0, 256))
    for conversation in range(8):
        stream, decision = place(picker, prompt(300, conversation * 1000))
        assert decision.address == homes[conversation]
        stream.request_body()
        finish(stream, usage(256, 300))


def test_a_subset_restricts_the_candidates(picker: Served) -> None:
    for subset in ([SECOND], SECOND, [f"{SECOND},{THIRD}"], [SECOND, "not an address"]):
        for _ in range(4):
            stream, decision = place(picker, prompt(), subset=subset)
            assert decision.address == SECOND
            stream.cancel()
    wait_until(picker.is_idle)


@pytest.mark.parametrize("subset", [[], [THIRD], "", ["nonsense"]])
def test_an_empty_subset_is_answered_with_503(picker: Served, subset: Any) -> None:
    stream = Stream(picker.channel)
    stream.request(subset=subset)
    refused = stream.decision()
    assert isinstance(refused, Refused)
    assert refused.status == 503
    assert json.loads(refused.body)["error"]["code"] == "no_worker"
    assert refused.headers["retry-after"] == "1"
    stream.close()
    wait_until(picker.is_idle)


def test_without_a_worker_the_answer_is_503(serve: Serve) -> None:
    with serve([]) as picker:
        _, refused = place(picker, prompt())
        assert (refused.status, refused.headers["content-type"]) == (503, "application/json")


def test_shed_requests_get_429_with_a_reason(serve: Serve) -> None:
    with serve(limits={"concurrent_requests": 1}) as picker:
        held, _ = place(picker, prompt())
        _, refused = place(picker, prompt())
        assert refused.status == 429
        assert refused.headers["x-llm-d-request-dropped-reason"] == "too_many_requests"
        assert refused.headers["retry-after"] == "1"
        held.cancel()
        wait_until(picker.is_idle)
        _, decision = place(picker, prompt())
        assert decision.address


def test_trailers_are_answered_after_the_body(picker: Served) -> None:
    stream = Stream(picker.channel)
    stream.request()
    stream.body(prompt(), end=False)
    stream.trailers()
    assert stream.decision().address
    piece = stream.next().request_body.response.body_mutation.streamed_response
    assert (piece.body, piece.end_of_stream) == (prompt(), False)
    assert stream.next().WhichOneof("response") == "request_trailers"
    stream.answer()
    stream.answer_body(usage(0))
    stream.send(response_trailers=messages.HttpTrailers(trailers=header_map({"x-end": "1"})))
    kinds = [stream.next().WhichOneof("response") for _ in range(3)]
    assert kinds == ["response_headers", "response_body", "response_trailers"]
    wait_until(lambda: picker.bookings() == 0, "the end of the booking at the trailers")
    stream.close()


def test_a_request_without_a_body_gets_any_worker_and_no_booking(picker: Served) -> None:
    stream = Stream(picker.channel)
    stream.request(path="/v1/models", method="GET", end=True)
    assert stream.decision().address in (FIRST, SECOND)
    assert picker.bookings() == 0
    stream.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"\xff\x00",
        b'{"model":"unknown","prompt":"x"}',
        b'{"model":"m","prompt":"text"}',
    ],
)
def test_a_prompt_that_cannot_be_read_is_placed_by_load(picker: Served, body: bytes) -> None:
    stream, decision = place(picker, body)
    assert decision.address in (FIRST, SECOND)
    assert stream.request_body() == body
    stream.cancel()
    wait_until(picker.is_idle)


def test_a_decision_waits_until_a_worker_has_room(serve: Serve) -> None:
    one = [{"address": FIRST, "model": "m", "max_num_seqs": 1}]
    queue = {"max_wait_s": 60.0, "share_passes": False}
    with serve(one, routing={"queue": queue}) as picker:
        first, _ = place(picker, prompt(512, stream=True))
        first.request_body()
        second = Stream(picker.channel)
        second.request()
        second.body(prompt(512, 5000, stream=True))
        wait_until(lambda: picker.metric("queue_requests") == 1, "the second request in the queue")
        assert picker.bookings() == 1
        finish(first, usage(0, 512))
        assert second.decision().address == FIRST
        second.request_body()
        second.answer()
        second.next()
        second.cancel()
        wait_until(picker.is_idle)


def test_a_client_that_leaves_the_queue_takes_its_place_with_it(serve: Serve) -> None:
    one = [{"address": FIRST, "model": "m", "max_num_seqs": 1}]
    with serve(one, routing={"queue": {"max_wait_s": 60.0, "share_passes": False}}) as picker:
        first, _ = place(picker, prompt(512, stream=True))
        second = Stream(picker.channel)
        second.request()
        second.body(prompt(512, 5000, stream=True))
        wait_until(lambda: picker.metric("queue_requests") == 1, "the second request in the queue")
        second.cancel()
        wait_until(lambda: picker.metric("queue_requests") == 0, "an empty queue")
        first.cancel()
        wait_until(picker.is_idle)


def test_the_model_is_rewritten_by_header_and_by_setting(serve: Serve) -> None:
    models = [{"name": "m", "block_size": 16, "loras": ["tuned"]}]
    with serve(models=models, model_rewrites={"alias": "m"}) as picker:
        for name, headers, expected in [
            ("alias", {}, "m"),
            ("m", {"x-llm-d-model-name-rewrite": "tuned"}, "tuned"),
            ("m", {"x-gateway-model-name-rewrite": "tuned"}, "tuned"),
            ("m", {}, "m"),
        ]:
            body = json.dumps({"prompt": [1, 2], "model": name, "n": 1})
            stream, decision = place(picker, body.encode(), headers)
            assert decision.address
            came_back = stream.request_body().decode()
            assert came_back == body.replace(json.dumps(name), json.dumps(expected))
            stream.cancel()


def test_internal_headers_of_clients_reach_no_worker(picker: Served) -> None:
    sent = {
        "x-prefiller-host-port": "6.6.6.6:1",
        "x-gateway-inference-objective": "x",
        "x-data-parallel-rank": "7",
        "x-dynamo-worker-instance-id": "7",
        "x-kept": "1",
    }
    _, decision = place(picker, prompt(), sent)
    assert sorted(decision.removed) == sorted(sent.keys() - {"x-kept"})


def test_a_split_names_both_workers(serve: Serve) -> None:
    endpoints = [
        {"address": FIRST, "model": "m", "role": "prefill"},
        {"address": SECOND, "model": "m", "role": "decode"},
    ]
    with serve(endpoints) as picker:
        _, decision = place(picker, prompt(), {"x-prefiller-host-port": "6.6.6.6:1"})
        assert decision.address == SECOND
        assert decision.headers["x-prefiller-host-port"] == FIRST
        assert decision.removed == []
    for each, instance in zip(endpoints, (11, 12), strict=True):
        each["instance"] = instance
    with serve(endpoints, dialect="dynamo") as picker:
        _, decision = place(picker, prompt())
        assert decision.address == SECOND
        names = {name: text for name, text in decision.headers.items() if "dynamo" in name}
        assert names == {
            "x-dynamo-prefill-instance-id": "11",
            "x-dynamo-worker-instance-id": "12",
            "x-dynamo-routing-mode": "disaggregated",
        }


def test_ranks_behind_one_address_are_named(serve: Serve) -> None:
    with serve([{"address": FIRST, "model": "m", "dp_size": 2}]) as picker:
        ranks = {
            place(picker, prompt(64, n * 100))[1].headers["x-data-parallel-rank"] for n in range(8)
        }
        assert ranks == {"0", "1"}


def test_prefer_if_available_refuses_a_cold_prompt(picker: Served) -> None:
    cold = {"prefer": "if-available"}
    _, refused = place(picker, prompt(), cold)
    assert refused.status == 412
    stream, _ = place(picker, prompt())
    stream.request_body()
    finish(stream, usage(0))
    assert isinstance(place(picker, prompt(), cold)[1], Decision)


def test_outcomes_are_learned_from_streams(picker: Served) -> None:
    stream, _ = place(picker, prompt(stream=True))
    stream.request_body()
    stream.answer(headers={"content-type": "text/event-stream"})
    stream.answer_body(b'data: {"choices":[{"index":0,"text":"a"}]}\n\ndata: {"cho')
    stream.answer_body(b'ices":[{"index":0,"text":"b"}]}\n\n')
    stream.answer_body(b"data: " + usage(48) + b"\n\ndata: [DONE]\n\n", end=True)
    for _ in range(4):
        stream.next()
    stream.close()
    wait_until(picker.is_idle)
    assert picker.metric("time_to_first_token_seconds_count", model="m") == 1
    assert picker.metric("picker_answers_total", code="200") == 1
    assert picker.metric("client_disconnects_total") == 0


def test_an_answer_of_the_gateway_itself_blames_the_worker(serve: Serve) -> None:
    with serve(feed={"quarantine_ms": 600_000}) as picker:
        stream, decision = place(picker, prompt())
        stream.request_body()
        failed = messages.HttpHeaders(headers=header_map({":status": "503"}))
        stream.send(response_headers=failed)
        stream.next()
        stream.close()
        wait_until(lambda: picker.metric("picker_unreached_total") == 1)
        others = {place(picker, prompt(64, n * 100))[1].address for n in range(6)}
        assert others == {FIRST, SECOND} - {decision.address}


def test_a_refusal_of_the_engine_blames_no_worker_as_dead(picker: Served) -> None:
    for attributes in (None, "via_upstream"):
        stream, _ = place(picker, prompt())
        stream.request_body()
        more: dict[str, Any] = {}
        headers = {":status": "503", "x-envoy-upstream-service-time": "3"}
        if attributes:
            headers.pop("x-envoy-upstream-service-time")
            details = struct_pb2.Struct()
            details.update({"response.code_details": attributes})
            more["attributes"] = {"envoy.filters.http.ext_proc": details}
        stream.send(response_headers=messages.HttpHeaders(headers=header_map(headers)), **more)
        stream.next()
        stream.close()
    wait_until(lambda: picker.metric("picker_answers_total", code="503") == 2)
    assert picker.metric("picker_unreached_total") == 0


def test_bodies_are_bounded_alone_and_in_sum(serve: Serve) -> None:
    with serve(limits={"body_bytes": 1000, "all_bodies_bytes": 1500}) as picker:
        stream = Stream(picker.channel)
        stream.request()
        stream.body(b"x" * 1001)
        assert stream.decision().status == 413
        halves = []
        for expected in (None, 503):
            half = Stream(picker.channel)
            half.request()
            half.body(b"x" * 900, end=False)
            if expected is None:
                wait_until(lambda: picker.status()["body_bytes"] == 900)
            else:
                assert half.decision().status == expected
            halves.append(half)
        halves[0].cancel()
        wait_until(picker.is_idle)


def test_a_body_that_does_not_arrive_ends_in_408(serve: Serve) -> None:
    with serve(limits={"read_timeout_ms": 50}) as picker:
        stream = Stream(picker.channel)
        stream.request()
        stream.body(b'{"model"', end=False)
        assert stream.decision().status == 408
        wait_until(picker.is_idle)


def test_buffered_bodies_are_decided_with_their_body(picker: Served) -> None:
    stream = Stream(picker.channel, modes=(2, 1))
    stream.request()
    assert stream.next().WhichOneof("response") == "request_headers"
    stream.body(prompt(), piece=1 << 20)
    assert stream.decision().address
    stream.answer()
    stream.next()
    stream.answer_body(usage(0), end=True)
    echo = stream.next()
    assert not echo.response_body.response.HasField("body_mutation")
    stream.close()
    wait_until(picker.is_idle)


def test_without_bodies_only_the_load_counts(picker: Served) -> None:
    stream = Stream(picker.channel, modes=(0, 0))
    stream.request()
    assert stream.decision().address
    stream.answer()
    stream.next()
    wait_until(lambda: picker.bookings() == 0, "an end with the headers: no body follows")
    stream.close()


def test_conformance_headers_work_in_their_mode_only(serve: Serve) -> None:
    every = [{"address": each, "model": "m"} for each in (FIRST, SECOND, THIRD)]
    wanted = {"test-epp-endpoint-selection": "127.0.0.2"}
    served = struct_pb2.Struct()
    served.update({"x-gateway-destination-endpoint-served": THIRD})
    with serve(every, conformance_headers=True) as picker:
        for _ in range(4):
            stream, decision = place(picker, prompt(), wanted)
            assert decision.address == THIRD
        stream.request_body()
        stream.answer(metadata_context={"filter_metadata": {"envoy.lb": served}})
        mutation = stream.next().response_headers.response.header_mutation
        assert [(h.header.key, h.header.raw_value) for h in mutation.set_headers] == [
            ("x-conformance-test-served-endpoint", THIRD.encode())
        ]
        stream.cancel()
    with serve(every) as picker:
        addresses = {place(picker, prompt(64, n * 100), wanted)[1].address for n in range(9)}
        assert addresses == {FIRST, SECOND, THIRD}


def test_other_messages_first_are_refused_with_a_text(picker: Served) -> None:
    stream = Stream(picker.channel)
    stream.body(prompt())
    with pytest.raises(grpc.RpcError) as refused:
        stream.next()
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "request headers first" in str(refused.value.details())
    stream.cancel()


@pytest.mark.parametrize("count", [1000, pytest.param(10_000, marks=pytest.mark.heavy)])
def test_streams_that_break_off_anywhere_leave_nothing(picker: Served, count: int) -> None:
    for number in range(count):
        stream = Stream(picker.channel)
        stream.request(end=number % 7 == 0)
        if number % 7:
            stream.body(prompt(), end=number % 3 > 0)
        if number % 3 and number % 5 == 0:
            stream.decision()
            if number % 7:
                stream.request_body()
            stream.answer(headers={"content-type": "text/event-stream"})
        stream.cancel()
    wait_until(picker.is_idle, "no request, no body and no booking left")
    assert picker.metric("panics_total") == 0
    stream, decision = place(picker, prompt())
    assert decision.address
    stream.cancel()


def test_health_follows_the_workers(serve: Serve) -> None:
    with serve([]) as picker:
        stub = health_pb2_grpc.HealthStub(picker.channel)

        def state(service: str) -> int:
            return stub.Check(health_pb2.HealthCheckRequest(service=service)).status

        up, down = (
            health_pb2.HealthCheckResponse.SERVING,
            health_pb2.HealthCheckResponse.NOT_SERVING,
        )
        ext_proc = "envoy.service.ext_proc.v3.ExternalProcessor"
        wait_until(lambda: state("readiness") == down)
        assert [state(name) for name in ("", "liveness", ext_proc)] == [up, up, up]
        picker.picker.set_endpoints(json.dumps([{"address": FIRST, "model": "m"}]))
        wait_until(lambda: state("readiness") == up, "a ready worker")
        with pytest.raises(grpc.RpcError) as unknown:
            state("something")
        assert unknown.value.code() == grpc.StatusCode.NOT_FOUND


def test_tls_is_served_where_a_certificate_is_named(serve: Serve, tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    command += " -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    command += f" -keyout {key} -out {certificate}"
    subprocess.run(command.split(), check=True, capture_output=True)
    files = {"certificate": str(certificate), "key": str(key)}
    with serve(tls=files, health_listen="127.0.0.1:0") as picker:
        trusted = grpc.ssl_channel_credentials(certificate.read_bytes())
        address = picker.status()["address"]
        names = [("grpc.ssl_target_name_override", "localhost")]
        with grpc.secure_channel(address, trusted, names) as channel:
            stream = Stream(channel)
            stream.request()
            stream.body(prompt())
            assert isinstance(stream.decision(), Decision)
            stream.cancel()
        with grpc.insecure_channel(picker.status()["health_address"]) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest()).status == 1
    with pytest.raises(RuntimeError, match="absent"), serve(tls=files | {"key": "absent.key"}):
        pass


def test_endpoints_change_while_requests_run(picker: Served) -> None:
    stream, _ = place(picker, prompt())
    picker.picker.set_endpoints(json.dumps([{"address": THIRD, "model": "m"}]))
    assert {place(picker, prompt(64, n * 100))[1].address for n in range(4)} == {THIRD}
    stream.request_body()
    assert finish(stream, usage(0)) == usage(0)
    with pytest.raises(ValueError, match="not registered"):
        picker.picker.set_endpoints(json.dumps([{"address": FIRST, "model": "other"}]))
    assert place(picker, prompt())[1].address == THIRD


def test_tenants_have_caches_of_their_own(picker: Served) -> None:
    stream, _ = place(picker, prompt(), {"x-tenant-id": "a"})
    stream.request_body()
    finish(stream, usage(0))
    cold = {"prefer": "if-available"}
    assert place(picker, prompt(), {"x-tenant-id": "b", **cold})[1].status == 412
    assert isinstance(place(picker, prompt(), {"x-tenant-id": "a", **cold})[1], Decision)


def test_decision_loss_is_measured_live(picker: Served) -> None:
    for number in range(70):  # more than a window
        stream, _ = place(picker, prompt(first=number * 1000))
        stream.request_body()
        finish(stream, usage(0))
    wait_until(lambda: picker.metric("decision_loss_windows") >= 1, "a window of decisions")
    assert picker.metric("decision_loss") >= 1.0
