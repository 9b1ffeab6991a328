"""Caches predicted in a running gateway: for fleets without events, and until events arrive."""

import http.client
import json

import pytest
from tests.gateway.test_feeds import KV, publish  # noqa: F401
from tests.waiting import wait_until

from wardrop._core import Gateway

PROMPT = list(range(1, 33))  # 8 blocks of 4


def start(serve, workers=(1, 2, 3), **predicted):
    routing = {"policy": {"name": "dynamo"}, "predicted": predicted, "explain_headers": True}
    return serve(workers=workers, routing=routing)


def ask(running, prompt=PROMPT):
    """Where a prompt went, and how many of its blocks that worker was thought to hold."""
    status, headers, _ = running.complete(prompt)
    assert status == 200
    return headers["x-wardrop-worker"], int(headers["x-wardrop-overlap-blocks"])


def ended(running, reason):
    name = "predicted_records_ended_total"
    return running.metric(name, reason=reason, worker_type="aggregated")


def test_without_events_a_prompt_comes_back_to_where_it_was(serve):
    running = start(serve, used="alone")
    first, overlap = ask(running)
    assert overlap == 0
    for _ in range(5):
        assert ask(running) == (first, 8)
    longer = [*PROMPT, 91, 92, 93, 94]
    assert ask(running, longer) == (first, 8)
    assert running.metric("predicted_blocks", worker_type="aggregated") == 9
    assert running.metric("predicted_records") >= 1
    assert running.metric("predicted_records_inserted_total") == 7
    assert running.workers()[1]["held_blocks"] == [0, 0, 0], "no event reported these blocks"


def test_off_by_default_and_then_nothing_is_remembered_or_told(serve):
    running = start(serve)
    for _ in range(6):
        assert ask(running)[1] == 0
    assert "wardrop_predicted_records{" not in running.gateway.metrics()


def test_record_ends_by_its_time_after_its_request(serve):
    running = start(serve, used="alone", ttl_s=0.5)
    worker, _ = ask(running)
    assert ask(running) == (worker, 8)
    wait_until(lambda: running.metric("predicted_records") == 0)
    assert ended(running, "expired") >= 1
    assert ask(running)[1] == 0


def test_beside_events_a_record_ends_soon_after_the_first_token(serve, publish):  # noqa: F811
    running = start(serve, workers=(1,), used="beside", settle_s=0.3, ttl_s=60)
    publisher = publish(77, KV)
    publisher.follow(running.gateway)
    publisher.await_subscription()
    ask(running)
    assert ask(running)[1] == 8, "before the first event"
    wait_until(lambda: running.metric("predicted_records") == 0)
    assert ask(running)[1] == 0, "no event came: it does not hold it after all"


def test_more_than_a_worker_can_hold_pushes_the_oldest_out(serve):
    running = start(serve, workers=(1,), used="alone", capacity_blocks=20)
    for number in range(4):
        ask(running, [number * 100 + i for i in range(1, 33)])
    assert running.metric("predicted_blocks") <= 20
    assert ended(running, "evicted") >= 1
    assert ask(running, list(range(1, 33)))[1] == 0, "the oldest"


def test_worker_that_leaves_is_predicted_to_hold_nothing(serve):
    running = start(serve, workers=(1,), used="alone")
    ask(running)
    running.gateway.remove_worker("m", "aggregated", 1)
    running.gateway.upsert_worker(json.dumps({"model": "m", "role": "aggregated", "instance": 1}))
    assert ended(running, "cleared") == 1
    assert ask(running)[1] == 0


def test_prefill_workers_of_a_split_are_predicted_and_decode_workers_not(serve):
    running = start(serve, workers=(), used="alone")
    for role, instance in (("prefill", 1), ("prefill", 2), ("decode", 3)):
        running.gateway.upsert_worker(
            json.dumps({"model": "m", "role": role, "instance": instance})
        )
    worker, overlap = ask(running)
    assert overlap == 0
    assert ask(running) == (worker, 8)
    assert running.metric("predicted_blocks", worker_type="prefill") == 8
    assert running.metric("predicted_blocks", worker_type="decode") == 0


def test_records_are_bounded(serve):
    running = start(serve, used="alone", max_records=10)
    connection = http.client.HTTPConnection("127.0.0.1", running.port)
    for number in range(50):
        body = json.dumps({"model": "m", "prompt": [number, 1, 2, 3, number, 5, 6, 7]})
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        assert connection.getresponse().read() is not None
    connection.close()
    assert running.metric("predicted_records") <= 10
    assert ended(running, "evicted") == 40


@pytest.mark.parametrize(
    ("predicted", "text"),
    [
        ({"used": "sometimes"}, "unknown variant `sometimes`, expected one of `off`, `alone`"),
        ({"ttl_s": 0}, "routing.predicted: predicted_ttl_s"),
        ({"settle_s": -1}, "routing.predicted: predicted_settle_s"),
        ({"capacity_blocks": 0}, "routing.predicted: predicted_capacity_blocks"),
        ({"max_records": 0}, "routing.predicted: predicted_max_records"),
    ],
)
def test_bad_setting_is_refused_at_start_by_name(predicted, text):
    with pytest.raises(ValueError, match=text):
        Gateway(json.dumps({"routing": {"predicted": predicted}}))
