"""The receipt of a decision, by request id."""

import http.client
import json
import time

from tests.gateway.held import background, waits
from tests.waiting import wait_until

PROMPT = [4711, 4712, 4713, 4714, *range(60)]


def start(serve, receipts=8, workers=(1, 2, 3), **routing):
    routing = {"policy": {"name": "toll"}, "receipts": receipts, **routing}
    return serve(workers=workers, routing=routing)


def receipt(running, request_id):
    text = running.gateway.receipt(request_id)
    return None if text is None else json.loads(text)


def test_receipt_names_candidates_their_parts_and_what_came_of_it(upstream, serve):
    usage = {
        "prompt_tokens": 64,
        "completion_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 16},
    }
    body = json.dumps({"choices": [], "usage": usage}).encode()
    upstream.script = lambda seen, conn: (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
        % (len(body), body)
    )
    running = start(serve)
    running.gateway.set_figures(json.dumps({"regime": 1}))
    assert running.complete(PROMPT, headers={"x-request-id": "abc"})[0] == 200
    found = receipt(running, "abc")
    assert found["request_id"] == "abc"
    assert abs(found["at_s"] - time.time()) < 60
    assert (found["model"], found["input_tokens"], found["blocks"]) == ("m", 64, 16)
    assert (found["regime"], found["routing"]["policy"]["name"]) == ("transition", "toll")
    assert (found["queued_s"], found["abstained"]) == (0, None)
    [leg] = found["legs"]
    assert (leg["role"], leg["cause"], leg["candidates_in_all"]) == ("aggregated", "at_once", 3)
    costs = [candidate["cost"] for candidate in leg["candidates"]]
    assert costs == sorted(costs)
    assert costs[0] == leg["cost"]
    assert leg["margin"] == costs[1] - costs[0]
    pinned = int(upstream.seen[0].header("x-dynamo-worker-instance-id"))
    assert leg["worker"]["instance"] == pinned
    assert leg["worker"] in [candidate["worker"] for candidate in leg["candidates"]]
    for candidate in leg["candidates"]:
        assert candidate["parts"]["own_first_token_s"] > 0
        assert candidate["active_requests"] == 0
    outcome = found["outcome"]
    assert (outcome["how"], outcome["status"], outcome["output_tokens"]) == ("finished", 200, 7)
    assert (outcome["cached_tokens"], outcome["predicted_cached_tokens"]) == (16, 0)
    assert 0 < outcome["ttft_s"] <= outcome["e2e_s"] < 10
    assert "4711" not in json.dumps(found), "nothing of a prompt"


def test_off_by_default_and_then_nothing_is_kept(serve):
    running = serve(workers=(1,))
    running.complete(PROMPT, headers={"x-request-id": "abc"})
    assert receipt(running, "abc") is None


def test_the_last_ones_are_kept(serve):
    running = start(serve, receipts=3)
    for number in range(5):
        running.complete(PROMPT, headers={"x-request-id": f"r{number}"})
    assert [receipt(running, f"r{n}") is not None for n in range(5)] == [False] * 2 + [True] * 3
    running.complete(PROMPT, headers={"x-request-id": "x" * 129})
    assert receipt(running, "x" * 129) is None
    assert receipt(running, "r2") is not None
    _, headers, _ = running.complete(PROMPT)
    assert receipt(running, headers["x-request-id"]) is not None, "an id of our own making"


def test_time_in_queue_is_in_the_receipt(serve, engines):
    running = start(serve, workers=(1,), queue={"backlog_s": 1e-9})
    answers: list = []
    threads = background(running, 1, answers, {"x-request-id": "first"})
    assert engines.arrived.acquire(timeout=10)
    threads += background(running, 1, answers, {"x-request-id": "second"})
    waits(running, 1)
    waiting_s = time.monotonic()
    waiting = receipt(running, "second")
    assert (waiting["legs"], waiting["outcome"]) == ([], None), "it waits"
    waited_s = time.monotonic() - waiting_s
    engines.finish(threads)
    first, second = receipt(running, "first"), receipt(running, "second")
    assert first["queued_s"] == 0
    assert second["queued_s"] >= waited_s > 0
    assert second["legs"][0]["waited_s"] == second["queued_s"]
    assert second["legs"][0]["cause"] == "room"
    parts = second["legs"][0]["candidates"][0]["parts"]
    assert len(parts) == 6
    assert parts["own_first_token_s"] == 0, "its prompt is in flight there already"
    assert parts["own_decode_s"] > 0
    headers = next(h for _, h, _ in answers if h["x-request-id"] == "second")
    assert abs(int(headers["x-wardrop-queue-ms"]) / 1e3 - second["queued_s"]) < 0.002


def test_refused_broken_and_left_requests_say_so(upstream, serve, engines):
    running = start(serve, workers=(1,), queue={"backlog_s": 1e-9, "max_requests": 1})
    answers: list = []
    threads = background(running, 1, answers, {"x-request-id": "a"})
    assert engines.arrived.acquire(timeout=10)
    threads += background(running, 1, answers, {"x-request-id": "b"})
    waits(running, 1)
    assert running.complete(PROMPT, headers={"x-request-id": "c"})[0] == 429
    assert receipt(running, "c")["outcome"]["how"] == "refused"
    assert receipt(running, "c")["outcome"]["status"] == 429
    engines.finish(threads)

    def stream(seen, conn):
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
        conn.sendall(head + b'data: {"choices": [{"text": "a"}]}\n\n')
        if seen.header("x-request-id") == "broken":
            conn.close()
            return
        for _ in range(200):
            time.sleep(0.02)
            conn.sendall(b'data: {"choices": [{"text": "a"}]}\n\n')

    upstream.script = stream
    conn = http.client.HTTPConnection("127.0.0.1", running.port)
    body = json.dumps({"model": "m", "prompt": PROMPT, "stream": True})
    named = {"content-type": "application/json", "x-request-id": "left"}
    conn.request("POST", "/v1/completions", body, named)
    answer = conn.getresponse()
    assert answer.read(10)
    answer.close()
    conn.close()
    wait_until(lambda: (receipt(running, "left")["outcome"] or {}).get("how") == "client_left")


def test_worker_that_failed_and_the_one_after_it_are_both_told(upstream, serve):
    def script(seen, conn):
        if seen.header("x-dynamo-worker-instance-id"):
            return b"HTTP/1.1 500 no\r\ncontent-length: 2\r\n\r\n{}"
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

    upstream.script = script
    running = start(serve, workers=(1, 2))
    assert running.complete(PROMPT, headers={"x-request-id": "r"})[0] == 200
    found = receipt(running, "r")
    assert len(found["legs"]) == 1, "the second attempt was Dynamo's"
    assert found["outcome"]["how"] == "finished"
    upstream.script = lambda seen, conn: b"HTTP/1.1 400 no\r\ncontent-length: 2\r\n\r\n{}"
    wait_until(lambda: running.status()["ready"])
    assert running.complete(PROMPT, headers={"x-request-id": "e"})[0] == 400
    assert receipt(running, "e")["outcome"]["status"] == 400
