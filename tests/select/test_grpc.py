"""The selection service over gRPC, through the client of the package."""

from __future__ import annotations

import urllib.request
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.picker.processes import metric
from tests.select.conftest import Serve, Served
from tests.waiting import wait_until

from wardrop.client import SelectionClient

PROMPT = list(range(100))


def code(error: pytest.ExceptionInfo[grpc.RpcError]) -> str:
    return error.value.code().name


def test_a_reservation_is_load_from_its_start_to_its_end(service: Served) -> None:
    with service.client.reserve("a", "m", PROMPT) as first:
        assert first.endpoint == f"http://w{first.worker_id}"
        assert (first.cached_tokens, first.prefill_tokens) == (0, 100)
        with service.client.reserve("b", "m", list(range(5000, 5100))) as second:
            assert {first.worker_id, second.worker_id} == {1, 2}, "the second avoids the first"
            assert service.active() == {1: 1, 2: 1}
        prefill = {load.worker_id: load.prefill_tokens for load in service.client.loads("m")}
        assert prefill[first.worker_id] == 100
        first.first_token()
        first.first_token()
        assert {load.prefill_tokens for load in service.client.loads("m")} == {0}
        blocks = {load.worker_id: load.decode_blocks for load in service.client.loads("m")}
        assert blocks[first.worker_id] == 6
    assert service.active() == {1: 0, 2: 0}


def test_a_call_that_is_sent_again_has_the_same_answer(service: Served) -> None:
    first = service.client.reserve("a", "m", PROMPT)
    again = service.client.reserve("a", "m", PROMPT)
    assert again == first
    assert sum(service.active().values()) == 1
    with pytest.raises(grpc.RpcError) as taken:
        service.client.reserve("a", "m", list(range(7000, 7100)))
    assert code(taken) == "ALREADY_EXISTS"
    assert service.client.free("a") is True
    assert service.client.free("a") is False


def test_one_id_in_many_calls_at_once_books_once(service: Served) -> None:
    with ThreadPoolExecutor(16) as pool:
        choices = list(pool.map(lambda _: service.client.reserve("a", "m", PROMPT), range(64)))
    assert len({choice.worker_id for choice in choices}) == 1
    assert sum(service.active().values()) == 1
    service.client.free("a")


def test_a_selection_books_nothing_until_it_is_reserved(service: Served) -> None:
    choice = service.client.select("m", PROMPT, selection_id="a")
    assert sum(service.active().values()) == 0
    booked = service.client.reserve_selected("a", "m")
    assert booked.worker_id == choice.worker_id
    assert sum(service.active().values()) == 1
    assert service.client.reserve_selected("a", "m") == booked, "a second call finds the first"
    service.client.free("a")
    with pytest.raises(grpc.RpcError) as gone:
        service.client.reserve_selected("a", "m")
    assert code(gone) == "NOT_FOUND"


def test_only_allowed_workers_are_chosen(service: Served) -> None:
    for worker in (1, 2):
        chosen = {service.client.select("m", PROMPT, allowed=[worker]).worker_id for _ in range(5)}
        assert chosen == {worker}
    with pytest.raises(grpc.RpcError) as none:
        service.client.select("m", PROMPT, allowed=[9])
    assert code(none) == "UNAVAILABLE"


def test_wrong_calls_say_what_is_wrong(service: Served) -> None:
    for call, expected in [
        (lambda: service.client.select("x", PROMPT), "UNAVAILABLE"),
        (lambda: service.client.reserve("", "m", PROMPT), "INVALID_ARGUMENT"),
        (lambda: service.client.reserve("x" * 257, "m", PROMPT), "INVALID_ARGUMENT"),
        (lambda: service.client.prefill_complete("a"), "NOT_FOUND"),
        (lambda: service.client.renew("a"), "NOT_FOUND"),
        (lambda: service.client.delete_worker(9), "NOT_FOUND"),
        (
            lambda: service.client.upsert_worker(9, model="m", endpoint="x", block_size=0),
            "INVALID_ARGUMENT",
        ),
        (
            lambda: service.client.upsert_worker(9, model="m", endpoint="x", block_size=32),
            "INVALID_ARGUMENT",
        ),
    ]:
        with pytest.raises(grpc.RpcError) as error:
            call()
        assert code(error) == expected
        assert error.value.details()


def test_reservations_expire_and_are_counted(serve: Serve) -> None:
    with serve(reservation_ttl_ms=300) as service:
        service.client.reserve("kept", "m", PROMPT)
        service.client.reserve("left", "m", PROMPT)

        def one_left() -> bool:
            service.client.renew("kept")
            return sum(service.active().values()) == 1

        wait_until(one_left, "the end of the reservation that nobody renewed")
        assert service.client.free("left") is False
        assert service.client.free("kept") is True
        page = service.server.metrics()
        assert any(
            line.startswith("wardrop_select_expired_total") and line.endswith(" 1")
            for line in page.splitlines()
        )


def test_selections_and_reservations_are_bounded(serve: Serve) -> None:
    with serve(max_selections=10, max_reservations=3) as service:
        for number in range(50):
            service.client.select("m", PROMPT, selection_id=f"s{number}")
        assert service.status()["selections"] == 10
        service.client.reserve_selected("s49", "m")
        with pytest.raises(grpc.RpcError) as forgotten:
            service.client.reserve_selected("s0", "m")
        assert code(forgotten) == "NOT_FOUND"
        service.client.reserve("a", "m", PROMPT)
        service.client.reserve("b", "m", PROMPT)
        with pytest.raises(grpc.RpcError) as full:
            service.client.reserve("c", "m", PROMPT)
        assert code(full) == "RESOURCE_EXHAUSTED"
        assert sum(service.active().values()) == 3, "a refused reservation is no load"


def test_a_worker_that_leaves_takes_its_reservations_with_it(service: Served) -> None:
    choice = service.client.reserve("a", "m", PROMPT)
    service.client.delete_worker(choice.worker_id)
    assert service.status()["reservations"] == 0
    assert service.client.free("a") is False
    other = service.client.reserve("b", "m", PROMPT)
    assert other.worker_id != choice.worker_id
    service.client.delete_worker(other.worker_id)
    with pytest.raises(grpc.RpcError) as none:
        service.client.select("m", PROMPT)
    assert code(none) == "UNAVAILABLE"


def test_groups_of_one_model_do_not_mix(service: Served) -> None:
    service.client.upsert_worker(
        7, model="m", endpoint="http://w7", block_size=32, routing_group="g"
    )
    choice = service.client.select("m", PROMPT, routing_group="g")
    assert choice.worker_id == 7
    assert {service.client.select("m", PROMPT).worker_id for _ in range(20)} <= {1, 2}


def test_health_and_reflection_answer(service: Served) -> None:
    stub = health_pb2_grpc.HealthStub(service.client.channel)

    def up(name: str) -> bool:
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name))
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    wait_until(lambda: all(map(up, ("", "liveness", "readiness", "wardrop.v1.Selection"))))


def test_clients_can_bring_a_channel_of_their_own(service: Served) -> None:
    with (
        grpc.insecure_channel(service.status()["grpc_address"]) as channel,
        SelectionClient(channel=channel) as client,
    ):
        assert len(client.workers()) == 2
    with pytest.raises(ValueError, match="expected one of them"):
        SelectionClient()


def test_decision_loss_is_measured_live(service: Served) -> None:
    def value(name: str) -> float:
        page = urllib.request.urlopen(f"{service.url}/metrics", timeout=30).read().decode()
        return metric(page, name)

    for number in range(70):  # more than a window
        with service.client.reserve(str(number), "m", list(range(number, number + 100))):
            pass
    wait_until(lambda: value("decision_loss_windows") >= 1, "a window of decisions")
    assert value("decision_loss") >= 1.0


def test_ranks_of_a_worker_are_named(serve: Serve) -> None:
    with serve(workers=0) as service:
        service.client.upsert_worker(1, model="m", endpoint="http://w1", ranks=2)
        with (
            service.client.reserve("a", "m", PROMPT) as first,
            service.client.reserve("b", "m", PROMPT[::-1]) as second,
        ):
            assert {first.dp_rank, second.dp_rank} == {0, 1}
