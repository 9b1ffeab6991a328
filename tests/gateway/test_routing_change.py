"""Policy and queue of a running gateway, changed under requests that wait."""

import json

import pytest
from tests.gateway.held import background, waits
from tests.waiting import wait_until


def test_queue_that_is_taken_away_sends_all_who_wait_at_once(upstream, serve, engines):
    running = serve(workers=(1,), routing={"queue": {"backlog_s": 1e-9}})
    answers: list = []
    threads = background(running, 4, answers)
    waits(running, 3)
    running.gateway.set_routing('{"queue": null}')
    wait_until(lambda: len(upstream.seen) == 4)
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 4
    engines.permits.release()
    assert "x-wardrop-queue-ms" not in running.complete([1, 2, 3, 4])[1]
    assert running.workers()[1]["active_requests"] == 0


def test_queue_that_is_put_in_front_holds_what_comes_next(upstream, serve, engines):
    running = serve(workers=(1,))
    running.gateway.set_routing('{"queue": {"backlog_s": 1e-9}}')
    answers: list = []
    threads = background(running, 3, answers)
    waits(running, 2)
    wait_until(lambda: upstream.seen)
    assert len(upstream.seen) == 1
    running.gateway.set_routing('{"queue": {"backlog_s": 60, "max_wait_s": 0.05}}')
    wait_until(lambda: len(upstream.seen) == 3)
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 3


def test_policy_changes_for_present_and_future_models_or_not_at_all(serve):
    running = serve()
    running.gateway.set_routing('{"policy": {"name": "toll"}}')
    running.gateway.upsert_model(json.dumps({"name": "n", "block_size": 4}))
    worker = {"model": "n", "role": "aggregated", "instance": 9}
    running.gateway.upsert_worker(json.dumps(worker))
    assert {m["pools"][0]["policy"] for m in running.status()["models"]} == {"toll"}
    for change in ('{"policy": {"name": "x"}}', '{"queue": {"kappa": -1}}', '{"quue": 1}'):
        with pytest.raises(ValueError, match=r"not a change|routing"):
            running.gateway.set_routing(change)
    routing = json.loads(running.gateway.routing())
    assert (routing["policy"]["name"], routing["queue"]) == ("toll", None)


def test_sample_tells_what_came_of_requests_since_the_last(serve):
    running = serve()
    assert running.complete([1, 2, 3, 4])[0] == 200
    sample = json.loads(running.gateway.sample())
    assert sample["outcomes"]["arrivals"] == 1
    (pool,) = sample["pools"]
    assert (pool["routable"], pool["booked"], pool["in_flight"]) == (2, 1, 0)
    assert json.loads(running.gateway.sample())["outcomes"]["arrivals"] == 0


def test_split_waits_for_room_on_both_legs(upstream, serve, engines):
    running = serve(workers=(), routing={"queue": {"backlog_s": 60}})
    prefill = [("prefill", instance, 4096) for instance in (1, 2, 3)]
    for role, instance, blocks in (*prefill, ("decode", 9, 20)):
        worker = {"model": "m", "role": role, "instance": instance, "total_kv_blocks": blocks}
        running.gateway.upsert_worker(json.dumps(worker))
    answers: list = []
    threads = background(running, 3, answers)
    # 16 blocks a prompt and an answer's share: the decode worker has room for one.
    wait_until(lambda: running.metric("queue_requests", worker_type="decode") == 2)
    wait_until(lambda: upstream.seen)
    assert len(upstream.seen) == 1
    engines.finish(threads)
    assert [status for status, _, _ in answers] == [200] * 3
    assert running.metric("queue_placed_total", worker_type="decode") == 3
    for role in ("prefill", "decode"):
        assert all(w["active_requests"] == 0 for w in running.workers(role).values())


def test_curves_are_told_and_taken_over(serve):
    running = serve()
    (pool,) = json.loads(running.gateway.curves())
    assert len(pool["workers"]) == 2
    record = pool["record"]
    record["fleet"]["prefill"]["theta"][0] = 0.5
    taken = running.gateway.restore_curves("m", "aggregated", json.dumps(record))
    assert taken == 2
    (after,) = json.loads(running.gateway.curves())
    assert after["record"]["fleet"]["prefill"]["theta"][0] == 0.5
    record["version"] = 99
    with pytest.raises(ValueError, match="version"):
        running.gateway.restore_curves("m", "aggregated", json.dumps(record))
    with pytest.raises(ValueError, match="record of curves"):
        running.gateway.restore_curves("m", "aggregated", '{"version": 1}')
