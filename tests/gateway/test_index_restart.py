"""The index over a restart of the gateway, over real ZeroMQ: what holds, and what is refuted."""

import json
import time

import pytest
from tests.gateway.test_feeds import KV, Publisher, held, publish  # noqa: F401
from tests.waiting import wait_until

from wardrop._core import Gateway


def follow(running, publisher):
    publisher.follow(running.gateway)
    publisher.await_subscription()


@pytest.fixture
def saved(serve, publish):  # noqa: F811
    """A publisher whose worker 1 holds 11, 12, 13 after event 2, and the index of that moment."""
    running = serve(workers=(1, 2))
    publisher: Publisher = publish(77, KV)
    follow(running, publisher)
    publisher.stored(1, 1, None, 11, 12)
    publisher.stored(1, 2, 12, 13)
    wait_until(lambda: held(running) == 3)
    data = running.gateway.save_index()
    running.gateway.stop()
    return publisher, data


def restored(serve, publisher, data, dump_follows=True, publishers=None, workers=(1, 2)):
    """A new gateway that took the index over and follows the publisher again."""
    running = serve(workers=workers)
    ids = [publisher.id] if publishers is None else publishers
    report = running.gateway.restore_index("m", "aggregated", data, ids, dump_follows)
    follow(running, publisher)
    return running, json.loads(report)


def judged(running, result):
    return running.metric("index_restored_first_events_total", result=result)


def test_next_event_proves_what_was_restored(serve, saved):
    publisher, data = saved
    running, report = restored(serve, publisher, data)
    assert report == {
        "taken_over": 1,
        "restarted": 0,
        "not_known": 1,  # worker 2 never published an event
        "gone": 0,
        "blocks": 3,
    }
    assert held(running) == 3, "before any event"
    worker = running.workers()[1]
    assert (worker["restored"], worker["synced"], worker["needs_resync"]) == (True, False, False)
    publisher.stored(1, 3, 13, 14)
    wait_until(lambda: held(running) == 4)
    worker = running.workers()[1]
    assert (worker["restored"], worker["synced"], worker["needs_resync"]) == (False, True, False)
    assert judged(running, "exact") == 1
    assert running.gateway.begin_dump("m", "aggregated") == 1, "only worker 2 needs it"
    assert running.gateway.load_dump("m", "aggregated", "[]") == 1
    assert held(running) == 4


def test_feed_that_went_on_meanwhile_is_read_again(serve, saved):
    publisher, data = saved
    running, _ = restored(serve, publisher, data)
    publisher.event(1, 5, {"removed": {"block_hashes": [13]}})
    wait_until(lambda: judged(running, "outrun") == 1)
    assert running.workers()[1]["needs_resync"]
    running.gateway.begin_dump("m", "aggregated")
    publisher.event(1, 6, {"removed": {"block_hashes": [12]}})
    wait_until(lambda: running.workers()[1]["last_event_id"] == 6)
    blocks = [{"block_hash": 11, "tokens_hash": 11}, {"block_hash": 12, "tokens_hash": 12}]
    stored = {"parent_hash": None, "blocks": blocks}
    dump = [{"worker_id": 1, "event": {"event_id": 1, "data": {"stored": stored}, "dp_rank": 0}}]
    running.gateway.load_dump("m", "aggregated", json.dumps(dump))
    assert held(running) == 1, "the dump, less what the event after it removed"
    assert running.workers()[1]["synced"]


def test_without_a_dump_to_come_missed_events_empty_the_worker(serve, saved):
    publisher, data = saved
    running, _ = restored(serve, publisher, data, dump_follows=False)
    assert held(running) == 3
    publisher.stored(1, 5, None, 21)
    wait_until(lambda: judged(running, "outrun") == 1)
    wait_until(lambda: held(running) == 1)


@pytest.mark.parametrize("event_id", [1, 2])
def test_worker_that_began_anew_under_its_old_feed_is_not_credited(serve, saved, event_id):
    publisher, data = saved
    running, _ = restored(serve, publisher, data)
    assert held(running) == 3
    publisher.stored(1, event_id, None, 31)
    wait_until(lambda: judged(running, "restarted") == 1)
    wait_until(lambda: held(running) == 1)
    assert running.workers()[1]["synced"] is (event_id == 1)


def test_worker_with_another_publisher_began_anew_and_starts_empty(serve, saved, publish):  # noqa: F811
    _, data = saved
    # The new publisher has sent as many events as the old one: event ids cannot distinguish them.
    again = publish(78, KV)
    running, report = restored(serve, again, data)
    assert (report["restarted"], report["taken_over"]) == (1, 0)
    assert held(running) == 0
    again.stored(1, 3, None, 41)
    wait_until(lambda: held(running) == 1)


def test_idle_worker_may_be_saved_again_before_anything_proved_it(serve, saved):
    publisher, data = saved
    running, _ = restored(serve, publisher, data)
    again = running.gateway.save_index()
    running.gateway.stop()
    running, report = restored(serve, publisher, again)
    assert report["taken_over"] == 1
    publisher.stored(1, 3, 13, 14)
    wait_until(lambda: judged(running, "exact") == 1)
    assert held(running) == 4


def test_worker_with_missing_events_is_saved_without_a_position(serve, saved):
    publisher, data = saved
    running, _ = restored(serve, publisher, data)
    publisher.stored(1, 9, None, 21)
    wait_until(lambda: judged(running, "outrun") == 1)
    data = running.gateway.save_index()
    running.gateway.stop()
    running, report = restored(serve, publisher, data)
    assert (report["taken_over"], report["not_known"]) == (0, 2)
    assert held(running) == 0


@pytest.mark.parametrize("dump_follows", [True, False])
def test_idle_worker_that_only_a_dump_told_of_is_taken_over_where_another_follows(
    serve,
    publish,  # noqa: F811
    dump_follows,
):
    running = serve(workers=(1,))
    publisher = publish(77, KV)
    publisher.follow(running.gateway, instance=1)
    publisher.await_subscription()
    blocks = [{"block_hash": 11, "tokens_hash": 11}]
    stored = {"parent_hash": None, "blocks": blocks}
    dump = [{"worker_id": 1, "event": {"event_id": 1, "data": {"stored": stored}, "dp_rank": 0}}]
    running.gateway.begin_dump("m", "aggregated")
    running.gateway.load_dump("m", "aggregated", json.dumps(dump))
    data = running.gateway.save_index()
    running.gateway.stop()
    running, report = restored(serve, publisher, data, dump_follows, workers=(1,))
    assert report["taken_over"] == int(dump_follows)
    assert held(running) == int(dump_follows)
    publisher.stored(1, 8, None, 12)
    wait_until(lambda: running.workers()[1]["needs_resync"])


def test_worker_that_is_gone_leaves_nothing_behind(serve, saved):
    publisher, data = saved
    running, report = restored(serve, publisher, data, workers=(2,))
    assert (report["gone"], report["taken_over"], report["blocks"]) == (1, 0, 0)
    assert running.status()["models"][0]["pools"][0]["index_blocks"] == 0


def test_bytes_that_are_no_index_are_refused_with_a_reason(serve, saved):
    _, data = saved
    running = serve(workers=(1, 2))
    for bad, text in [
        (b"", "first bytes are others"),
        (b"not an index", "first bytes are others"),
        (data[:-1], "cut off or damaged"),
        (data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
        (data[:8] + b"\x63" + data[9:], "version 99"),
    ]:
        for read in (
            lambda bad=bad: Gateway.saved_index(bad),
            lambda bad=bad: running.gateway.restore_index("m", "aggregated", bad, [77], True),
        ):
            with pytest.raises(ValueError, match=text):
                read()
    with pytest.raises(ValueError, match="no prefill workers"):
        running.gateway.restore_index("m", "prefill", data, [77], True)
    summary = json.loads(Gateway.saved_index(data))
    assert summary["pools"] == [{"model": "m", "role": "aggregated", "workers": 2, "whole": 1}]
    assert abs(summary["saved_at_s"] - time.time()) < 60
    assert running.gateway.restore_index("m", "aggregated", data, [77], True)
    with pytest.raises(ValueError, match="restore before the first event"):
        running.gateway.restore_index("m", "aggregated", data, [77], True)
    assert held(running) == 3


def test_index_of_another_block_size_is_refused(serve, saved):
    _, data = saved
    running = serve(workers=())
    running.gateway.upsert_model(json.dumps({"name": "m", "block_size": 8}))
    worker = {"model": "m", "role": "aggregated", "instance": 1}
    running.gateway.upsert_worker(json.dumps(worker))
    with pytest.raises(ValueError, match="another block size, mode or key"):
        running.gateway.restore_index("m", "aggregated", data, [77], True)
    assert held(running) == 0
