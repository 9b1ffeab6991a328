"""Streams as other routers were seen to misread them: comments, errors in front, and early ends."""

from __future__ import annotations

import http.client
import json
import socket
import threading

import pytest
from tests.waiting import DEADLINE_S, wait_until

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
TOKEN = b'data: {"choices":[{"index":0,"text":"a"}]}\n\n'
USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":1,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"
REQUEST = {"model": "m", "prompt": [1, 2, 3, 4], "stream": True}


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def whole(*events: bytes) -> bytes:
    return HEAD + b"".join(chunk(event) for event in events) + b"0\r\n\r\n"


def test_comments_before_the_first_token_are_not_the_first_token(upstream, serve):
    token = threading.Event()

    def script(seen, conn: socket.socket) -> bytes:
        conn.sendall(HEAD + chunk(b": ping\n\n") + chunk(b":\n\n"))
        token.wait(DEADLINE_S)
        conn.sendall(chunk(TOKEN) + chunk(DONE) + b"0\r\n\r\n")
        return b""

    upstream.script = script
    running = serve(workers=(1,))
    client = threading.Thread(
        target=running.complete, args=([1, 2, 3, 4],), kwargs={"stream": True}
    )
    client.start()
    wait_until(lambda: upstream.seen)
    assert running.workers()[1]["prefill_tokens"] == 4, "a comment ends no prefill"
    assert running.metric("time_to_first_token_seconds_count") == 0
    token.set()
    client.join()
    wait_until(lambda: running.metric("time_to_first_token_seconds_count") == 1)


def test_comments_are_no_sign_of_life_and_the_request_may_move(upstream, serve):
    ended = threading.Event()

    def script(seen, conn: socket.socket) -> bytes | None:
        if len(upstream.seen) > 1:
            return whole(TOKEN, DONE)
        conn.sendall(HEAD + chunk(b": ping\n\n"))
        ended.set()
        return None  # the frontend breaks off behind its comment

    upstream.script = script
    running = serve()
    status, _, body = running.complete([1, 2, 3, 4], stream=True)
    assert ended.is_set()
    assert (status, body.count(b"data:")) == (200, 2)
    assert len(upstream.seen) == 2


@pytest.mark.parametrize(
    "first",
    [
        b'data: {"error":{"message":"no worker","code":503}}\n\n',
        b': ping\n\ndata: {"error":{"message":"no worker","code":503}}\n\n',
        b'event: error\ndata: {"message":"no worker"}\n\n',
        b'event:error\r\ndata:{"message":"no worker"}\r\n\r\n',
    ],
)
def test_error_as_the_first_event_is_a_failed_attempt(upstream, serve, first):
    upstream.script = lambda seen, conn: (
        whole(TOKEN, DONE) if len(upstream.seen) > 1 else whole(first)
    )
    running = serve()
    status, _, body = running.complete([1, 2, 3, 4], stream=True)
    assert status == 200
    assert b"error" not in body
    assert len(upstream.seen) == 2


def test_answer_in_one_piece_has_no_time_to_first_token(upstream, serve):
    running = serve()
    assert running.complete([1, 2, 3, 4])[0] == 200
    assert running.metric("time_to_first_token_seconds_count") == 0


def test_client_that_leaves_at_the_end_mark_has_its_whole_answer_counted(upstream, serve):
    left = threading.Event()

    def script(seen, conn: socket.socket) -> bytes:
        conn.sendall(HEAD + chunk(TOKEN) + chunk(USAGE) + chunk(DONE))
        left.wait(DEADLINE_S)  # the end of the body comes after the client has left
        return b"0\r\n\r\n"

    upstream.script = script
    running = serve(workers=(1,))
    conn = http.client.HTTPConnection("127.0.0.1", running.port, timeout=DEADLINE_S)
    conn.request("POST", "/v1/completions", json.dumps(REQUEST))
    answer = conn.getresponse()
    text = b""
    while DONE not in text:
        text += answer.read1(4096)
    conn.sock.close() if conn.sock else answer.close()
    answer.close()
    conn.close()
    left.set()
    wait_until(lambda: running.metric("cached_tokens_reported_total") == 4)
    assert running.metric("client_disconnects_total") == 0


def test_time_per_token_is_that_of_one_choice(upstream, serve):
    said = json.dumps({"choices": [{"index": 0, "text": "data: x\n\ndata: y"}]}).encode()
    both = [said, said.replace(b'"index": 0', b'"index": 1')] * 5
    usage = b'{"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":10}}'
    upstream.script = lambda seen, conn: whole(
        *(b"data: " + event + b"\n\n" for event in [*both, usage]), DONE
    )
    running = serve(routing={"receipts": 8})
    status, _, _ = running.complete([1, 2, 3, 4], stream=True, n=2, headers={"x-request-id": "r"})
    assert status == 200
    wait_until(lambda: running.gateway.receipt("r") is not None)
    wait_until(lambda: json.loads(running.gateway.receipt("r"))["outcome"] is not None)
    assert json.loads(running.gateway.receipt("r"))["outcome"]["output_tokens"] == 5
