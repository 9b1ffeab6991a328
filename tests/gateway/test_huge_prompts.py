"""A text that cannot fit the context is refused at once, and costs other requests no time."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

import pytest
from tests.gateway.test_prompt_pool import MEBIBYTE, WAIT_FOR_EVER, large_ones_run, prompt, send
from tests.waiting import wait_until

from wardrop.dynamo.model_folder import model_folder

OPTIONS = {**WAIT_FOR_EVER, "handover": False}
"""Without dry runs, so that the upstream sees the clients' requests alone."""

CONTEXT = 1_024
"""Tokens; at 64 bytes a token the context holds exactly 64 KiB of text."""


FULL = 64 * CONTEXT
"""Bytes of the longest text that is not refused."""


def with_context(running, context: int = CONTEXT):
    """Give model `m` a tokeniser, a chat template, and this context."""
    model = {"name": "m", "folder": str(model_folder()), "block_size": 4, "context_length": context}
    running.gateway.upsert_model(json.dumps(model))
    return running


def chat(size: int) -> bytes:
    return json.dumps(
        {"model": "m", "messages": [{"role": "user", "content": "one two " * (size // 8)}]}
    ).encode()


@pytest.mark.parametrize(
    ("path", "body"), [("/v1/completions", prompt), ("/v1/chat/completions", chat)]
)
def test_text_beyond_the_context_is_refused_and_nothing_is_sent_on(upstream, serve, path, body):
    running = with_context(serve(prompt=OPTIONS))
    status, _, answer = running.request("POST", path, body(2 * FULL))
    error = json.loads(answer)["error"]
    assert (status, error["code"]) == (400, "context_length_exceeded")
    assert error["type"] == "invalid_request_error"
    assert str(len(body(2 * FULL))) in error["message"]
    assert upstream.seen == []
    assert running.metric("refusals_total", error_code="context_length_exceeded") == 1
    assert running.metric("requests_in_flight") == 0


def test_images_and_texts_that_may_fit_are_not_refused(upstream, serve):
    running = with_context(serve(prompt=OPTIONS))
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 2_000_000}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "what is it"}, image]}]
    body = json.dumps({"model": "m", "messages": messages}).encode()
    assert running.request("POST", "/v1/chat/completions", body)[0] == 200
    assert running.metric("abstentions_total", reason="multimodal") == 1
    assert running.request("POST", "/v1/completions", prompt(FULL))[0] == 200
    assert len(upstream.seen) == 2


def test_without_the_limit_every_text_goes_on(upstream, serve):
    running = with_context(serve(prompt={**OPTIONS, "refuse_bytes_per_token": 0}))
    for path, body in (("/v1/completions", prompt), ("/v1/chat/completions", chat)):
        assert running.request("POST", path, body(2 * FULL))[0] == 200
    assert running.metric("abstentions_total", reason="too_long") == 2


def test_two_huge_prompts_leave_small_requests_alone(upstream, serve):
    """Two prompts of 11 MB, in place of 44 MB: both have their answer at once."""
    running = with_context(serve(prompt=OPTIONS))
    clients = [send(running, prompt(11 * 10**6)) for _ in range(2)]
    took_s = []
    for _ in range(100):
        started_s = time.monotonic()
        assert running.request("POST", "/v1/completions", prompt(200))[0] == 200
        took_s.append(time.monotonic() - started_s)
    for client in clients:
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
        client.close()
    assert running.metric("prompts_waiting") == 0
    assert len(upstream.seen) == 100
    assert sorted(took_s)[50] < 1.0


def tokeniser_cpu_s() -> float:
    """Processor time of the tokeniser's threads in this process."""
    seconds = 0.0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            if (task / "comm").read_text().startswith("wardrop-tokens"):
                seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def test_client_that_leaves_a_running_tokeniser_frees_its_core(upstream, serve):
    running = with_context(
        serve(prompt={**OPTIONS, "tokenise_threads": 1, "refuse_bytes_per_token": 0}), 1 << 40
    )
    begun_s = time.monotonic()
    # The second prompt waits, so the first one runs.
    clients = large_ones_run(running, [prompt(16 * MEBIBYTE)] * 2)
    wait_until(lambda: tokeniser_cpu_s() > 0.2, "the tokeniser at work")
    for client in clients:
        client.close()
    wait_until(lambda: running.metric("requests_in_flight") == 0, "the place of the client")
    wait_until(lambda: running.metric("request_body_bytes") == 0, "the bytes of the body")
    assert running.metric("prompts_abandoned_total") == 2
    with send(running, prompt(20_000)) as later:
        assert later.recv(65536).startswith(b"HTTP/1.1 200 ")
    stopped_s, used_s = time.monotonic() - begun_s, tokeniser_cpu_s()
    assert len(upstream.seen) == 1, "the prompts of clients that left go nowhere"
    # The same prompt for a client that stays, on the same machine at the same time.
    begun_s = time.monotonic()
    with send(running, prompt(16 * MEBIBYTE)) as stays:
        assert stays.recv(65536).startswith(b"HTTP/1.1 200 ")
    whole_s, all_s = time.monotonic() - begun_s, tokeniser_cpu_s() - used_s
    print(
        f"left {used_s:.2f} s of processor ({stopped_s:.2f} s), stayed {all_s:.2f} ({whole_s:.2f})"
    )
    assert used_s < 0.75 * all_s
