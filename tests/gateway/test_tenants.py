"""Tenants in the queue: weights, bounds, and who one is; deadlines; the decode leg's room."""

import http.client
import json
import threading
import time

import pytest
from tests.gateway.held import background, waits
from tests.waiting import wait_until

from wardrop._core import Gateway


def start(serve, weights=None, hints=False, **queue):
    queue = {"backlog_s": 1e-9, "kappa": 0, **queue}
    routing = {"policy": {"name": "toll"}, "queue": queue, "queue_hints": hints}
    return serve(workers=(1,), routing={**routing, "tenant_weights": weights or {}})


def mean_places(upstream, engines, running, tenants, each=10):
    """Mean place in which each tenant's requests were served; they came tenant by tenant."""
    answers: list = []
    threads = background(running, 1, answers, {"x-tenant-id": "first"})
    wait_until(lambda: len(upstream.seen) == 1)

    def ask(tenant, number):
        prompt = [number + 1, *range(1, 3000)]
        answers.append(running.complete(prompt, headers={"x-tenant-id": tenant}))

    for tenant in tenants:
        many = [threading.Thread(target=ask, args=(tenant, number)) for number in range(each)]
        for thread in many:
            thread.start()
        threads += many
        waits(running, len(threads) - 1)
    engines.finish(threads)
    order = [seen.header("x-tenant-id") for seen in upstream.seen][1:]
    assert len(order) == each * len(tenants)
    return [sum(at for at, who in enumerate(order) if who == tenant) / each for tenant in tenants]


@pytest.mark.parametrize(("plains", "goes_first"), [(0.02, True), (1.0, False)])
def test_tenant_of_more_weight_is_served_first_though_it_came_last(
    upstream, serve, engines, plains, goes_first
):
    # Each request is dated 0.1 s or 5 s behind the one of its tenant before it.
    running = start(serve, weights={"plain": plains, "gold": 1.0}, fair=True)
    plain, gold = mean_places(upstream, engines, running, ["plain", "gold"])
    assert (gold < plain - 2) is goes_first, (plain, gold)


def test_weights_count_in_a_fair_queue_only(upstream, serve, engines):
    running = start(serve, weights={"gold": 8.0})
    plain, gold = mean_places(upstream, engines, running, ["plain", "gold"], each=6)
    assert (plain, gold) == (2.5, 8.5)


def test_tenant_is_the_last_name_that_is_not_empty(upstream, serve, engines):
    running = start(serve, max_requests_per_tenant=1)
    answers: list = []
    threads = background(running, 1, answers)
    wait_until(lambda: len(upstream.seen) == 1)
    threads += background(running, 1, answers, {"x-tenant-id": "a"})
    waits(running, 1)
    # The same tenant as for the cache's namespace, regardless of the values before it.
    conn = http.client.HTTPConnection("127.0.0.1", running.port)
    body = json.dumps({"model": "m", "prompt": list(range(8))})
    conn.putrequest("POST", "/v1/completions")
    for name, value in [
        ("content-type", "application/json"),
        ("content-length", str(len(body))),
        ("x-tenant-id", "b"),
        ("x-tenant-id", " a "),
    ]:
        conn.putheader(name, value)
    conn.endheaders(body.encode())
    answer = conn.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (429, "tenant_queue_full")
    conn.close()
    assert running.metric("queue_refused_total", limit="tenant_requests") == 1
    engines.finish(threads)


def test_bytes_of_one_tenant_are_bounded(serve, engines):
    running = start(serve, max_bytes_per_tenant=600)
    answers: list = []
    threads = background(running, 2, answers, {"x-tenant-id": "a"})
    waits(running, 1)  # about 400 bytes each
    status, headers, body = running.complete(list(range(64)), headers={"x-tenant-id": "a"})
    assert (status, "retry-after" in headers) == (429, True)
    assert json.loads(body)["error"]["code"] == "tenant_queue_full"
    assert running.metric("queue_refused_total", limit="tenant_bytes") == 1
    threads += background(running, 1, answers, {"x-tenant-id": "b"})
    waits(running, 2)
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 3


def test_tenants_beyond_the_bound_share_one_place(upstream, serve, engines):
    running = start(serve, max_tenants=2, max_requests_per_tenant=1)
    answers: list = []
    threads = background(running, 1, answers, {"x-tenant-id": "0"})
    wait_until(lambda: len(upstream.seen) == 1)
    for count, tenant in enumerate(["a", "b", "c"], 1):
        threads += background(running, 1, answers, {"x-tenant-id": tenant})
        waits(running, count)
    assert running.complete([1, 2, 3, 4], headers={"x-tenant-id": "d"})[0] == 429, "with c"
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 4


@pytest.mark.parametrize("hints", [True, False])
def test_deadline_that_passes_while_a_request_waits_is_refused_at_once(
    upstream, serve, engines, hints
):
    running = start(serve, hints=hints)
    answers: list = []
    threads = background(running, 1, answers)
    wait_until(lambda: len(upstream.seen) == 1)
    patient: list = []
    threads += background(running, 1, patient)
    waits(running, 1)
    hasty: list = []
    threads += background(running, 1, hasty, {"x-wardrop-deadline-ms": "1500"})
    started_s = time.monotonic()
    waits(running, 2)
    if hints:
        wait_until(lambda: hasty)
        status, headers, body = hasty[0]
        assert (status, json.loads(body)["error"]["code"]) == (429, "deadline_hopeless")
        assert int(headers["retry-after"]) >= 1
        assert running.metric("queue_refused_total", limit="deadline") == 1
        assert running.metric("queue_requests") == 1, "the patient one waits on"
        assert len(upstream.seen) == 1
    else:
        wait_until(lambda: time.monotonic() - started_s > 1.6, "the time of the deadline")
        assert running.metric("queue_requests") == 2, "no client may set deadlines unless allowed"
    engines.finish(threads)
    assert patient[0][0] == 200
    assert running.workers()[1]["active_requests"] == 0


class Streams:
    """Sends the first event of each answer at once; ends the answer on demand."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)

    def __call__(self, seen, conn):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        conn.sendall(head + b'data: {"choices": [{"text": "a"}]}\n\n')
        self.permits.acquire(timeout=20)
        conn.sendall(b"data: [DONE]\n\n")
        conn.close()


@pytest.mark.parametrize(("blocks", "waits_there"), [(40, True), (100_000, False)])
def test_decode_leg_waits_for_room_of_its_own(upstream, serve, blocks, waits_there):
    streams = upstream.script = Streams()
    routing = {"policy": {"name": "toll"}, "queue": {"kappa": 0}}
    running = serve(workers=(), routing=routing)
    for role, instance, total in (("prefill", 1, 100_000), ("decode", 2, blocks)):
        worker = {"model": "m", "role": role, "instance": instance, "total_kv_blocks": total}
        running.gateway.upsert_worker(json.dumps(worker))
    answers: list = []

    def ask():
        answers.append(running.complete(list(range(64)), stream=True))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    threads[0].start()
    wait_until(lambda: len(upstream.seen) == 1)
    # Its first token is out: the prefill worker is free, the KV of the decode worker is not.
    wait_until(lambda: running.workers("prefill")[1]["active_requests"] == 0)
    threads[1].start()
    if waits_there:
        wait_until(lambda: running.metric("queue_requests", worker_type="decode") == 1)
        waiting_s = time.monotonic()
        assert running.metric("queue_requests", worker_type="prefill") == 0
        assert len(upstream.seen) == 1
        held_ms = 1e3 * (time.monotonic() - waiting_s)
    else:
        wait_until(lambda: len(upstream.seen) == 2)
    for _ in range(2):
        streams.permits.release()
    for thread in threads:
        thread.join()
    assert [status for status, _, _ in answers] == [200, 200]
    waited_ms = max(int(headers["x-wardrop-queue-ms"]) for _, headers, _ in answers)
    assert waited_ms + 1 >= held_ms if waits_there else waited_ms == 0
    for role, instance in (("prefill", 1), ("decode", 2)):
        assert running.workers(role)[instance]["active_requests"] == 0


@pytest.mark.parametrize(
    ("routing", "text"),
    [
        ({"tenant_weights": {"a": 0}}, 'routing.tenant_weights: got 0 for "a", expected 0.001'),
        ({"tenant_weights": {"a": -1}}, "got -1 for"),
        ({"tenant_weights": {str(n): 1 for n in range(1025)}}, "got 1025 tenants, at most 1024"),
        ({"queue": {"max_tenants": 0}}, "routing.queue: max_tenants"),
        ({"receipts": 65_537}, "routing.receipts must be at most 65536, got 65537"),
    ],
)
def test_bad_setting_is_refused_by_name(routing, text):
    with pytest.raises(ValueError, match=text):
        Gateway(json.dumps({"routing": routing}))
