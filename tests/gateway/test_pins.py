"""The worker is pinned by header; a pin that fails is taken back before the client sees a byte."""

import json
import threading

import pytest

WORKER = "x-dynamo-worker-instance-id"
INVALID = b'{"message":"Invalid request","type":"Bad Request","code":400}'


def answer(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


def test_known_prompt_is_pinned_and_body_is_untouched(upstream, serve):
    body = b'{ "model" : "m", "prompt":[1,2,3,4 ], "unknown": {"x": 1.50} }'
    assert serve().request("POST", "/v1/completions", body)[0] == 200
    assert upstream.seen[0].header(WORKER) in ("1", "2")
    assert upstream.seen[0].header("x-dynamo-dp-rank") is None
    assert upstream.seen[0].body == body


def test_rank_is_pinned_when_the_instance_has_several(upstream, serve):
    running = serve(workers=())
    worker = {"model": "m", "role": "aggregated", "instance": 9, "dp_start": 2, "dp_size": 2}
    running.gateway.upsert_worker(json.dumps(worker))
    running.complete([1, 2, 3, 4])
    assert upstream.seen[0].header("x-dynamo-dp-rank") in ("2", "3")


def test_split_pins_prefill_and_decode(upstream, serve):
    running = serve(workers=())
    for role, instance in (("prefill", 7), ("decode", 8)):
        worker = {"model": "m", "role": role, "instance": instance}
        running.gateway.upsert_worker(json.dumps(worker))
    running.complete([1, 2, 3, 4])
    assert upstream.seen[0].header(WORKER) == "8"
    assert upstream.seen[0].header("x-dynamo-prefill-instance-id") == "7"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b'{"model":"m","prompt":[-1]}', "unparsable"),
        (b'{"model":"m","prompt":[' + b"1," * 5000 + b"1]}", "too_long"),
        (b'{"model":"other","prompt":[1]}', "unknown_model"),
        (b'{"model":"m","prompt":[[1],[2]]}', "batch"),
        (b'{"model":"m","prompt":"text without a tokeniser"}', "no_tokeniser"),
    ],
)
def test_unknown_prompt_goes_through_without_a_pin(upstream, serve, body, reason):
    running = serve()
    assert running.request("POST", "/v1/completions", body)[0] == 200
    assert upstream.seen[0].header(WORKER) is None
    assert upstream.seen[0].body == body
    assert running.metric("abstentions_total", reason=reason) == 1


def test_no_worker_leaves_the_choice_to_dynamo(upstream, serve):
    running = serve(workers=())
    assert running.complete([1, 2, 3, 4])[0] == 200
    assert upstream.seen[0].header(WORKER) is None
    assert running.request("GET", "/ready")[0] == 503
    assert running.metric("abstentions_total", reason="no_worker") == 1


def test_client_pins_are_refused_unless_allowed(upstream, serve):
    running = serve()
    for name in (WORKER, "x-worker-instance-id", "x-dynamo-prefill-instance-id"):
        assert running.complete([1], headers={name: "1"})[0] == 400
    status, _, body = running.complete([1], nvext={"backend_instance_id": 1})
    assert status == 400
    assert json.loads(body)["error"]["code"] == "client_pin_refused"
    assert not upstream.seen


ROUTES = ("chat/completions", "completions", "responses", "messages", "embeddings")


@pytest.mark.parametrize("route", ROUTES)
def test_body_that_may_hide_a_pin_is_refused_on_every_route(upstream, serve, route):
    """Dynamo takes an array for `nvext`, and on some routes the last of two equal keys."""
    running = serve()
    for body in (
        b'{"model":"m","prompt":[1],"nvext":[null,null,null,2]}',
        b'{"model":"m","model":"m","nvext":{"decode_worker_id":2}}',
        b'{"model":"m","nvext":{},"nvext":{"decode_worker_id":2}}',
        b'{"model":"m","nvext":{},"nve\\u0078t":{"decode_worker_id":2}}',
        b'{"model":"m","nvext":{"dp_rank":null,"dp_rank":2}}',
        b'[{"nvext":{"decode_worker_id":2}}]',
        b'{"model":"m","nvext":{"decode_worker_id":2}',
    ):
        status, _, answer = running.request("POST", f"/v1/{route}", body)
        assert (status, json.loads(answer)["error"]["code"]) == (400, "unreadable_body"), body
    pinned = b'{"model":"m","nvext":{"decode\\u005fworker_id":2}}'
    status, _, answer = running.request("POST", f"/v1/{route}", pinned)
    assert (status, json.loads(answer)["error"]["code"]) == (400, "client_pin_refused")
    assert not upstream.seen


def test_unreadable_body_is_left_to_dynamo_where_clients_may_pin(upstream, serve):
    running = serve(routing={"allow_client_pins": True})
    assert running.request("POST", "/v1/completions", b"{not json")[0] == 200
    assert upstream.seen[0].body == b"{not json"
    assert running.metric("abstentions_total", reason="unreadable") == 1


def test_allowed_client_pin_passes_and_is_booked(upstream, serve):
    running = serve(routing={"allow_client_pins": True})
    loads = []

    def script(seen, conn):
        loads.append(running.workers()[2]["active_requests"])
        return answer("200 OK", b"{}")

    upstream.script = script
    assert running.complete([1, 2, 3, 4], headers={WORKER: "2"})[0] == 200
    assert upstream.seen[0].header(WORKER) == "2"
    assert loads == [1]


@pytest.mark.parametrize(
    "failure",
    [
        answer("400 Bad Request", INVALID),
        answer("500 Internal Server Error", b'{"message":"x"}'),
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        b'20\r\ndata: {"error":{"code":503}}   \n\r\n0\r\n\r\n',
    ],
)
def test_failed_pin_is_taken_back_once_and_the_worker_left_alone(upstream, serve, failure):
    def script(seen, conn):
        return failure if seen.header(WORKER) == "1" else answer("200 OK", b'{"fine":1}')

    upstream.script = script
    running = serve(workers=(1,))
    status, _, body = running.complete([1, 2, 3, 4], stream=True)
    assert (status, body) == (200, b'{"fine":1}')
    assert [seen.header(WORKER) for seen in upstream.seen] == ["1", None]
    assert running.workers()[1]["fault"] == "failed"
    assert running.metric("retries_total", reason="pin_failed") == 1
    running.complete([1, 2, 3, 4])
    assert upstream.seen[-1].header(WORKER) is None, "a failed worker must not be chosen"


OVERLOADS = ("429 Too Many Requests", "503 Service Unavailable", "529 Site Is Overloaded")


@pytest.mark.parametrize("status", OVERLOADS)
def test_refusal_of_a_full_worker_is_retried_without_blame(upstream, serve, status):
    def script(seen, conn):
        return answer(status, b"{}") if seen.header(WORKER) else answer("200 OK", b'{"fine":1}')

    upstream.script = script
    running = serve(workers=(1,))
    assert running.complete([1, 2, 3, 4])[0] == 200
    assert [seen.header(WORKER) for seen in upstream.seen] == ["1", None]
    assert running.workers()[1]["available"] is True
    assert running.metric("retries_total", reason="pin_refused") == 1


def test_second_attempts_are_a_share_of_the_traffic(upstream, serve):
    upstream.script = lambda seen, conn: answer("529 Site Is Overloaded", b"{}")
    running = serve(workers=(1,))
    requests = 60
    for number in range(requests):
        assert running.complete([number])[0] == 529
    retried = running.metric("retries_total", reason="pin_refused")
    assert running.metric("retries_total", reason="budget_exhausted") > 0
    assert retried + requests == len(upstream.seen)
    assert retried < requests / 2


def test_worker_that_refuses_at_once_attracts_no_traffic(upstream, serve):
    def script(seen, conn):
        return (
            answer("404 Not Found", b"{}")
            if seen.header(WORKER) == "1"
            else answer("200 OK", b"{}")
        )

    upstream.script = script
    running = serve(workers=(1, 2, 3), routing={"policy": {"name": "least_loaded"}})
    statuses = [running.complete([number])[0] for number in range(60)]
    assert statuses.count(404) <= 10
    assert running.workers()[1]["fault"] == "refusing"
    assert running.metric("time_to_first_token_seconds_count") == 0


def test_error_that_the_request_causes_does_not_blame_the_worker(upstream, serve):
    upstream.script = lambda seen, conn: answer("500 Internal Server Error", b'{"why":"poison"}')
    running = serve(workers=(1,))
    status, _, body = running.complete([1, 2, 3, 4])
    assert (status, body) == (500, b'{"why":"poison"}')
    assert running.workers()[1]["available"] is True


def test_validation_error_is_passed_on_without_a_second_attempt(upstream, serve):
    upstream.script = lambda seen, conn: answer("400 Bad Request", b'{"message":"too long"}')
    running = serve(workers=(1,))
    assert running.complete([1, 2, 3, 4])[0] == 400
    assert len(upstream.seen) == 1


def test_pick_and_booking_are_one_step(upstream, serve):
    """Requests that arrive together see each other's bookings: none herds onto one worker."""
    gate = threading.Barrier(9, timeout=20)

    def script(seen, conn):
        gate.wait()
        return answer("200 OK", b"{}")

    upstream.script = script
    running = serve(workers=(1, 2, 3, 4), routing={"policy": {"name": "least_loaded"}})
    threads = [threading.Thread(target=running.complete, args=([1, 2, 3, 4],)) for _ in range(8)]
    for thread in threads:
        thread.start()
    gate.wait()
    for thread in threads:
        thread.join()
    pins = sorted(seen.header(WORKER) for seen in upstream.seen)
    assert pins == ["1", "1", "2", "2", "3", "3", "4", "4"]
    assert all(worker["active_requests"] == 0 for worker in running.workers().values())
