"""Series of the metrics page: a worker's end with the worker, a model's with the model."""

from __future__ import annotations

import json

from tests.waiting import wait_until


def answer_with_usage(_seen, _conn) -> bytes:
    usage = {
        "prompt_tokens": 4,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    body = json.dumps({"usage": usage}).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def lines_with(running, label: str) -> list[str]:
    return [line for line in running.gateway.metrics().splitlines() if label in line]


def test_series_of_a_worker_end_with_the_worker(upstream, serve):
    upstream.script = answer_with_usage
    running = serve(workers=())
    for instance in range(1000, 1030):
        worker = {"model": "m", "role": "aggregated", "instance": instance}
        running.gateway.upsert_worker(json.dumps(worker))
        assert running.complete([1, 2, 3, 4])[0] == 200
        label = f'worker_id="{instance}"'
        wait_until(
            lambda: running.metric("cached_tokens_reported_total") == 3, "the reported usage"
        )
        assert lines_with(running, label), "a worker that is there has its series"
        running.gateway.remove_worker("m", "aggregated", instance)
        assert lines_with(running, "worker_id=") == []


def test_counters_of_cached_tokens_keep_their_sums_from_page_to_page(upstream, serve):
    upstream.script = answer_with_usage
    running = serve(workers=(1,))
    for count in range(1, 4):
        assert running.complete([1, 2, 3, 4])[0] == 200
        wait_until(
            lambda count=count: running.metric("cached_tokens_reported_total") == 3 * count,
            "the reported usage",
        )
    assert running.metric("cached_tokens_reported_total") == 9, "a second page is equal"


def test_series_of_a_model_end_with_the_model(upstream, serve):
    upstream.script = answer_with_usage
    running = serve(workers=(1,))
    assert running.complete([1, 2, 3, 4])[0] == 200
    wait_until(lambda: running.metric("cached_tokens_reported_total") == 3, "the reported usage")
    assert lines_with(running, 'model="m"')
    running.gateway.remove_model("m")
    assert lines_with(running, 'model="m"') == []


def test_model_that_dynamo_draws_sets_of_is_not_pinned_and_ready_stays(upstream, serve):
    running = serve(workers=(1, 2))
    for left_to_dynamo, pinned in ((True, False), (False, True)):
        model = {"name": "m", "block_size": 4, "left_to_dynamo": left_to_dynamo}
        running.gateway.upsert_model(json.dumps(model))
        upstream.seen.clear()
        assert running.complete([1, 2, 3, 4])[0] == 200
        pin = upstream.seen[-1].header("x-dynamo-worker-instance-id")
        assert (pin is not None) == pinned
        assert running.request("GET", "/ready")[0] == 200
    assert running.metric("abstentions_total", reason="worker_sets") == 1
    assert len(running.workers()) == 2, "workers, and what they hold, stay known"
