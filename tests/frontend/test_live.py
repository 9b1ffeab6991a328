"""The native frontend with real mock workers: routes, decisions, pins, bookings, recovery."""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from tests.frontend.native import Native, cached_tokens, running, served_by
from tests.live.client import Answer, get, shape, stream
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = [pytest.mark.live, pytest.mark.usefixtures("private_network", "binary")]

PIDFD_GETFD = 438
"""Number of the system call, which Python does not wrap."""


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    with Fleet(FleetSpec(workers=3, speedup_ratio=20, process_per_worker=False)) as fleet:
        yield fleet


def prompt(number: int, tokens: int = 256) -> list[int]:
    """Token ids of a prompt of its own."""
    return [300 + (number * 977 + i * 31 + i * i) % 7000 for i in range(tokens)]


CHAT = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hello there"}]}

ROUTES = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "tiny", "max_tokens": 3, "prompt": "hello there"},
    "/v1/responses": {"model": "tiny", "max_output_tokens": 3, "input": "hello there"},
    "/v1/messages": CHAT,
}


def test_every_route_is_decided_in_process_and_answers_like_dynamos_own_frontend(fleet: Fleet):
    stock = fleet.add_frontend("round-robin", arguments=("--enable-anthropic-api",))
    with running(fleet, "--enable-anthropic-api", "--wardrop-policy", "dynamo") as native:
        from tests.live.client import post

        for number, (path, body) in enumerate(ROUTES.items(), start=1):
            answer = native.post(path, body)
            assert answer.status == 200, (path, answer.body)
            assert shape(answer.json()) == shape(post(stock.url, path, body).json()), path
            assert native.decisions() == number, path


def test_prompt_goes_where_its_blocks_are_and_the_engine_agrees(fleet: Fleet):
    with running(fleet, "--wardrop-policy", "dynamo") as native:
        first = native.complete(prompt(1))
        worker = served_by(first)[1]
        blocks = len(prompt(1)) // fleet.spec.block_size
        wait_until(
            lambda: (
                native.metrics().total("wardrop_worker_held_blocks", worker_id=str(worker))
                >= blocks
            ),
            "the events of its blocks",
        )
        again = native.complete(prompt(1))
        assert served_by(again)[1] == worker
        assert cached_tokens(again) >= (blocks - 1) * fleet.spec.block_size
        by_prediction = native.metrics().total("wardrop_cached_tokens_predicted_total")
        assert by_prediction >= (blocks - 1) * fleet.spec.block_size


def test_pin_of_the_client_and_dry_run_are_left_to_dynamo(fleet: Fleet):
    instances = sorted(fleet.live_instances())
    with running(fleet, "--wardrop-policy", "dynamo") as native:
        for worker in instances:
            fields = {"extra_fields": ["worker_id"], "backend_instance_id": worker}
            answer = native.complete(prompt(2), nvext=fields)
            assert answer.status == 200, answer.body
            assert served_by(answer)[1] == worker
        assert native.abstentions("client_pin") == len(instances)
        asked = {"extra_fields": ["worker_id"], "annotations": ["query_instance_id:"]}
        native.complete(prompt(2), nvext=asked)
        assert native.abstentions("dry_run") == 1
        assert native.decisions() == 0


def test_every_booking_ends_with_its_request_also_when_the_client_leaves(fleet: Fleet):
    with running(fleet, "--wardrop-policy", "dynamo") as native:
        body = native.body(prompt(3), 2000, stream=True, ignore_eos=True)
        connection, lines = stream(native.url, "/v1/completions", body)
        wait_until(lambda: next(lines).startswith(b"data: "), "the first token")
        assert native.bookings() == 1
        connection.close()
        wait_until(lambda: native.bookings() == 0, "the release of the booking")
        with ThreadPoolExecutor(8) as clients:
            answers = list(clients.map(lambda n: native.complete(prompt(n), 8), range(40)))
        assert [answer.status for answer in answers] == [200] * 40
        wait_until(lambda: native.bookings() == 0, "the release of all bookings")


def test_late_binding_places_every_request(fleet: Fleet):
    arguments = ("--wardrop-policy", "toll", "--wardrop-queue")
    with running(fleet, *arguments) as native:
        with ThreadPoolExecutor(24) as clients:
            answers = list(clients.map(lambda n: native.complete(prompt(n), 4), range(60)))
        assert [answer.status for answer in answers] == [200] * 60
        placed = native.metrics().total("wardrop_queue_placed_total")
        assert placed == native.decisions() == 60
        wait_until(lambda: native.bookings() == 0, "the release of all bookings")


def test_index_is_recovered_from_the_workers_at_the_start(fleet: Fleet):
    blocks = len(prompt(400)) // fleet.spec.block_size

    def held(frontend: Native) -> dict[str, float]:
        return frontend.metrics().by("wardrop_worker_held_blocks", "worker_id")

    with running(fleet, "--wardrop-policy", "dynamo") as before:
        worker = served_by(before.complete(prompt(400)))[1]
        wait_until(lambda: held(before)[str(worker)] >= blocks, "the events of its blocks")
        with running(fleet, "--wardrop-policy", "dynamo") as native:
            wait_until(lambda: held(native) == held(before), "the same blocks in both frontends")
            assert held(native)[str(worker)] >= blocks
            assert served_by(native.complete(prompt(400)))[1] == worker


def test_events_of_workers_without_a_broker_come_by_the_services_own_feeds():
    def topics() -> list[str]:
        feeds = get(native.url, "/wardrop/status").json()["feeds"]
        return sorted(feed["topic"] for feed in feeds if feed["connected"])

    def messages() -> int:
        feeds = get(native.url, "/wardrop/status").json()["feeds"]
        return sum(feed["messages"] for feed in feeds if feed["topic"] == "kv-events")

    with Fleet(FleetSpec(workers=2, speedup_ratio=20)) as fleet, running(fleet) as native:
        both = ["forward-pass-metrics", "kv-events"]
        wait_until(lambda: topics() == sorted(2 * both), "two feeds of each worker")
        before = messages()
        assert native.complete(prompt(600)).status == 200
        wait_until(lambda: messages() > before, "the events of its blocks")
        fleet.workers[0].child.stop(10.0)
        wait_until(lambda: topics() == both, "the end of the feeds of a worker that left")


def test_model_and_its_completions_come_and_go_with_the_workers():
    spec = FleetSpec(workers=1, speedup_ratio=20, model_name="short-lived")
    with Fleet(spec) as fleet, running(fleet) as native:
        assert native.complete(prompt(5)).status == 200
        fleet.workers[0].child.stop(10.0)
        wait_until(
            lambda: "short-lived" not in get(native.url, "/v1/models").body.decode(),
            "the end of the model",
        )
        assert native.complete(prompt(5)).status == 404
        fleet.add_worker()
        native.await_workers(1)
        wait_until(lambda: native.complete(prompt(5)).status == 200, "the model again")


def test_small_writes_do_not_wait_for_the_clients_acknowledgement(fleet: Fleet):
    with running(fleet) as native:
        port = int(native.url.rpartition(":")[2])
        assert nodelay(native.child.pid, port)
        stock = fleet.add_frontend("round-robin")
        assert not nodelay(stock.child.pid, stock.port), "Dynamo has mended it: ours can go"


def nodelay(pid: int, port: int) -> bool:
    """Whether the process's listening socket hands TCP_NODELAY on to its connections."""
    wanted = f"0100007F:{port:04X}"
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    (inode,) = [row[9] for row in rows if row[1] == wanted and row[3] == "0A"]
    folder = Path(f"/proc/{pid}/fd")
    (number,) = [
        int(entry.name) for entry in folder.iterdir() if link(entry) == f"socket:[{inode}]"
    ]
    process = os.pidfd_open(pid)
    copied = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, process, number, 0)
    os.close(process)
    assert copied >= 0, os.strerror(ctypes.get_errno())
    with socket.socket(fileno=copied) as listener:
        return bool(listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))


def link(entry: Path) -> str:
    """Target of a descriptor; empty for one that is gone."""
    try:
        return str(entry.readlink())
    except OSError:
        return ""


def test_split_fleet_is_decided_in_process_in_any_order_of_arrival():
    spec = FleetSpec(prefill=2, decode=2, speedup_ratio=20)
    with Fleet(spec) as fleet, running(fleet, "--wardrop-policy", "dynamo") as native:
        for number in range(6):
            answer = native.complete(prompt(number, 512), 4)
            assert answer.status == 200, answer.body
        metrics = native.metrics()
        assert metrics.total("wardrop_decisions_total", worker_type="prefill") == 6
        assert metrics.total("wardrop_decisions_total", worker_type="decode") == 6
        wait_until(lambda: native.bookings() == 0, "the release of all bookings")
        before = native.decisions()
        late = fleet.add_worker("prefill")
        native.await_workers(5)
        assert late.instances
        assert native.complete(prompt(9, 512), 4).status == 200
        assert native.decisions() == before + 2


def test_each_data_parallel_rank_has_a_cache_of_its_own_and_is_pinned():
    ranks = ("--data-parallel-size", "2")
    spec = FleetSpec(workers=2, speedup_ratio=20, process_per_worker=False, mocker_arguments=ranks)
    with Fleet(spec) as fleet, running(fleet, "--wardrop-policy", "dynamo", workers=4) as native:
        blocks = len(prompt(1)) // spec.block_size
        seen: set[tuple[int, int]] = set()
        for number in range(1, 13):
            worker, rank = rank_of(native.complete(prompt(number)))
            seen.add((worker, rank))
            at = {"worker_id": str(worker), "dp_rank": str(rank)}
            wait_until(partial(holds, native, blocks, **at), "the events of its blocks")
            again = native.complete(prompt(number))
            assert rank_of(again) == (worker, rank)
            assert cached_tokens(again) >= (blocks - 1) * spec.block_size
        assert {rank for _, rank in seen} == {0, 1}
        assert native.decisions() == 24


def holds(native: Native, blocks: int, **at: str) -> bool:
    """Whether the rank with these labels holds so many blocks."""
    return native.metrics().total("wardrop_worker_held_blocks", **at) >= blocks


def rank_of(answer: Answer) -> tuple[int, int]:
    """Instance and rank that Dynamo says decoded the request."""
    worker = answer.json()["nvext"]["worker_id"]
    return worker["decode_worker_id"], worker["decode_dp_rank"]


def test_blocks_without_a_cache_salt_are_not_expected_under_one(fleet: Fleet):
    least = (len(prompt(700)) // fleet.spec.block_size - 1) * fleet.spec.block_size
    with running(fleet, "--wardrop-policy", "dynamo") as native:

        def predicted(**fields: str) -> float:
            """Cached tokens that one more request with these fields is expected to find."""
            before = native.metrics().total("wardrop_cached_tokens_predicted_total")
            answer = native.complete(prompt(700), **fields)
            assert answer.status == 200, answer.body
            return native.metrics().total("wardrop_cached_tokens_predicted_total") - before

        wait_until(lambda: predicted() >= least, "the blocks of the prompt")
        # The mock workers hash no salt, so only blocks without a salt exist.
        assert predicted(cache_salt="a") == 0
        assert predicted() >= least
