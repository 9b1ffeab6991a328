"""The queue's bounds and options, each as a client meets it."""

import json
import threading

import pytest
from tests.gateway.held import background, waits
from tests.waiting import wait_until


def start(serve, hints=True, **queue):
    routing = {"policy": {"name": "toll"}, "queue": {"backlog_s": 1e-9, **queue}}
    return serve(workers=(1,), routing={**routing, "queue_hints": hints})


def served(upstream):
    """Tenants in the order in which their requests reached the engine."""
    return [seen.header("x-tenant-id") for seen in upstream.seen]


def test_bytes_of_those_who_wait_are_bounded(serve, engines):
    running = start(serve, max_bytes=1000)
    answers: list = []
    threads = background(running, 3, answers)
    waits(running, 2)  # about 400 bytes each
    status, headers, _ = running.complete(list(range(64)))
    assert (status, "retry-after" in headers) == (429, True)
    engines.finish(threads)


def test_one_tenant_can_not_take_every_place(serve, engines):
    running = start(serve, max_requests_per_tenant=2)
    answers: list = []
    threads = background(running, 3, answers, {"x-tenant-id": "a"})
    waits(running, 2)
    assert running.complete([1, 2, 3, 4], headers={"x-tenant-id": "a"})[0] == 429
    threads += background(running, 1, answers, {"x-tenant-id": "b"})
    waits(running, 3)
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 4


@pytest.mark.parametrize("hints", [True, False])
def test_priority_goes_first_where_clients_may_ask_for_it(upstream, serve, engines, hints):
    running = start(serve, hints, priority_s=60)
    answers: list = []
    threads = background(running, 1, answers)
    wait_until(lambda: len(upstream.seen) == 1)
    threads += background(running, 1, answers, {"x-tenant-id": "usual"})
    waits(running, 1)
    urgent = {"x-tenant-id": "urgent", "x-wardrop-priority": "1"}
    threads += background(running, 1, answers, urgent)
    waits(running, 2)
    engines.finish(threads)
    first = ["urgent", "usual"] if hints else ["usual", "urgent"]
    assert served(upstream)[1:] == first


def places_of(upstream, serve, engines):
    """Where two tenants' 12 requests each were served, of which `heavy`'s all came first."""
    running = start(serve, fair=True, kappa=0)
    answers: list = []
    threads = background(running, 1, answers)
    wait_until(lambda: len(upstream.seen) == 1)

    def ask(tenant, number):
        prompt = [number + 1, *range(1, 3000)]
        answers.append(running.complete(prompt, headers={"x-tenant-id": tenant}))

    for tenant in ("heavy", "light"):
        many = [threading.Thread(target=ask, args=(tenant, number)) for number in range(12)]
        for thread in many:
            thread.start()
        threads += many
        waits(running, len(threads) - 1)
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 25
    order = served(upstream)[1:]
    return [
        sum(place for place, who in enumerate(order) if who == tenant) / 12
        for tenant in ("heavy", "light")
    ]


def test_fair_tenants_take_turns_though_one_came_first_with_many(upstream, serve, engines):
    # Each request is dated a prompt's prefill, about 0.1 s, behind its tenant's one before.
    heavy, light = places_of(upstream, serve, engines)
    assert light - heavy < 11, "12 is one tenant wholly behind the other"


def test_worker_that_leaves_while_requests_wait_for_it_wedges_nobody(upstream, serve, engines):
    running = start(serve, max_wait_s=1.0)
    answers: list = []
    threads = background(running, 3, answers)
    waits(running, 2)
    running.gateway.remove_worker("m", "aggregated", 1)
    # No worker is left: after the longest wait the requests go to Dynamo without a pin.
    wait_until(lambda: len(upstream.seen) == 3)
    assert upstream.seen[2].header("x-dynamo-worker-instance-id") is None
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 3
    worker = {"model": "m", "role": "aggregated", "instance": 2}
    running.gateway.upsert_worker(json.dumps(worker))
    engines.permits.release()
    assert running.complete([1, 2, 3, 4])[0] == 200


def test_booking_whose_end_is_lost_frees_its_worker_by_its_age(serve, engines):
    running = serve(workers=(1,), routing={"queue": {"backlog_s": 1e-9}, "booking_ttl_s": 0.5})
    answers: list = []
    threads = background(running, 2, answers)
    wait_until(lambda: running.metric("queue_placed_total", reason="room") == 2)
    assert running.metric("bookings_expired_total") >= 1
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 2
