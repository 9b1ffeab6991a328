"""Answers through the router equal Dynamo's own: in shape from a model, in bytes elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.live.client import Answer, get, post, request, shape
from tests.live.router import Router, cached_tokens, running, served_by

from wardrop.dynamo.embedded import Fleet, FleetSpec

pytestmark = pytest.mark.live

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}


@pytest.fixture(scope="module")
def fleet(private_network: None) -> Iterator[Fleet]:
    with Fleet(FleetSpec(workers=2, speedup_ratio=20)) as fleet:
        fleet.add_frontend("kv")
        yield fleet


@pytest.fixture(scope="module")
def router(fleet: Fleet) -> Iterator[Router]:
    with running(fleet, "--upstream", fleet.frontends[0].url) as router:
        router.await_handover()
        yield router


def both(router: Router, path: str, body: object) -> tuple[Answer, Answer]:
    """The same request to Dynamo and through the router."""
    return post(router.fleet.frontends[0].url, path, body), router.post(path, body)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2},
        {"logprobs": True, "top_logprobs": 2},
        {"seed": 7, "temperature": 0.5, "stop": ["zz"], "user": "u", "metadata": {"a": "b"}},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
        {"nvext": {"extra_fields": ["worker_id", "timing"]}},
    ],
    ids=["plain", "n", "logprobs", "sampling", "tools", "nvext"],
)
def test_chat_answer_has_dynamos_shape(router: Router, fields: dict[str, object]):
    theirs, ours = both(router, "/v1/chat/completions", {**CHAT, "max_tokens": 3, **fields})
    assert (ours.status, shape(ours.json())) == (theirs.status, shape(theirs.json()))
    if ours.status == 200:
        assert ours.json()["usage"]["prompt_tokens"] == theirs.json()["usage"]["prompt_tokens"]
        assert len(ours.json()["choices"]) == len(theirs.json()["choices"])


def test_streamed_chat_has_dynamos_events_and_end(router: Router):
    body = {**CHAT, "max_tokens": 5, "stream": True, "stream_options": {"include_usage": True}}
    theirs, ours = both(router, "/v1/chat/completions", body)
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    assert ours.events()[-1] == theirs.events()[-1] == "[DONE]"
    assert [shape(e) for e in ours.events()[-2:]] == [shape(e) for e in theirs.events()[-2:]]
    assert ours.events()[-2]["usage"]["completion_tokens"] == 5
    assert len(ours.events()) == len(theirs.events())


@pytest.mark.parametrize(
    "prompt",
    ["one two three", list(range(200, 240)), ["one two", "three"], [[1, 2, 3, 4], [5, 6, 7]]],
    ids=["text", "ids", "texts", "batches of ids"],
)
@pytest.mark.parametrize("streamed", [False, True])
def test_completion_has_dynamos_shape(router: Router, prompt: object, streamed: bool):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": 3, "stream": streamed}
    theirs, ours = both(router, "/v1/completions", body)
    assert ours.status == theirs.status
    if streamed and ours.status == 200:
        assert ours.events()[-1] == theirs.events()[-1] == "[DONE]"
        assert shape(ours.events()[0]) == shape(theirs.events()[0])
    else:
        assert shape(ours.json()) == shape(theirs.json())


def test_responses_and_embeddings_answer_as_dynamo_does(router: Router):
    for path, body in (
        ("/v1/responses", {"model": "tiny", "input": "one two three", "max_output_tokens": 3}),
        ("/v1/embeddings", {"model": "tiny", "input": "one two three"}),
    ):
        theirs, ours = both(router, path, body)
        assert (ours.status, shape(ours.json())) == (theirs.status, shape(theirs.json())), path


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/tiny", "/v1/files"])
def test_route_without_a_prompt_passes_byte_for_byte(router: Router, path: str):
    theirs, ours = get(router.fleet.frontends[0].url, path), get(router.url, path)
    assert (ours.status, ours.body) == (theirs.status, theirs.body)
    assert ours.headers.get("content-type") == theirs.headers.get("content-type")


@pytest.mark.parametrize("path", ["/busy_threshold", "/openapi.json"])
def test_control_route_of_dynamo_is_out_of_reach(router: Router, path: str):
    theirs, ours = get(router.fleet.frontends[0].url, path), get(router.url, path)
    assert theirs.status == 200
    assert ours.status == 404
    assert ours.json()["error"]["code"] == "route_not_public"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"[]",
        b"\xff\xfe",
        b'{"model": 3, "prompt": "x"}',
        b'{"model": "tiny"}',
        b'{"model": "no-such-model", "prompt": "x"}',
        b'{"model": "tiny", "prompt": [-1]}',
        b'{"model": "tiny", "prompt": [99999999999]}',
        b'{"model": "tiny", "prompt": "x", "max_tokens": "many"}',
        b'{"model": "tiny", "prompt": "x", "nvext": {"no_such_field": 1}}',
        b'{"model": "tiny", "prompt": "x", "nvext": 3}',
        b'{"model": "tiny", "prompt": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    ],
)
def test_malformed_body_is_answered_as_dynamo_answers_it(router: Router, body: bytes):
    theirs, ours = both(router, "/v1/completions", body)
    assert ours.status == theirs.status
    assert 400 <= ours.status < 500
    assert router.complete("still alive").status == 200


def test_too_large_a_body_is_refused_in_openais_shape(fleet: Fleet):
    with running(
        fleet, "--upstream", fleet.frontends[0].url, "--limits-body-bytes", "20000"
    ) as router:
        large = router.complete("x " * 20_000)
        assert large.status == 413
        assert {"message", "type", "code"} <= set(large.json()["error"])
        assert "20000" in large.json()["error"]["message"]
        headers = {"x-much": "y" * 70_000}
        assert request(router.url, "GET", "/v1/models", headers=headers).status == 431
        assert router.complete("small").status == 200
        assert router.metrics().total("wardrop_refusals_total") >= 2


def test_worker_pins_of_clients_are_refused_unless_allowed(fleet: Fleet, router: Router):
    pin = str(fleet.workers[0].instances[0])
    body = {"model": "tiny", "prompt": "a b c", "max_tokens": 1}
    refused = router.post("/v1/completions", body, x_dynamo_worker_instance_id=pin)
    assert refused.status == 400
    assert "error" in refused.json()
    arguments = ("--upstream", fleet.frontends[0].url, "--routing-allow-client-pins")
    with running(fleet, *arguments) as open_router:
        for number in range(6):
            answer = open_router.post(
                "/v1/completions",
                {**body, "prompt": f"{number} b c", "nvext": {"extra_fields": ["worker_id"]}},
                x_dynamo_worker_instance_id=pin,
            )
            assert served_by(answer)[1] == int(pin)


def test_request_id_of_the_client_comes_back(router: Router):
    answer = router.post("/v1/chat/completions", {**CHAT, "max_tokens": 1}, x_request_id="mine-1")
    assert answer.headers["x-request-id"] == "mine-1"
    assert router.post("/v1/chat/completions", {**CHAT, "max_tokens": 1}).headers["x-request-id"]


def test_connection_is_kept_for_the_next_request(router: Router):
    from tests.live.client import connect

    connection = connect(router.url)
    try:
        for _ in range(3):
            connection.request("GET", "/v1/models")
            answer = connection.getresponse()
            assert answer.status == 200
            answer.read()
            assert not answer.will_close
    finally:
        connection.close()


def test_cached_tokens_pass_through(router: Router):
    prompt = list(range(3000, 3100))
    first, second = router.complete(prompt), router.complete(prompt)
    assert cached_tokens(first) == 0
    assert cached_tokens(second) == 96
