"""The public port serves the routes of the APIs; other routes of an upstream stay out of reach."""

import json

import pytest


@pytest.mark.parametrize(
    "path",
    [
        "/busy_threshold",
        "/v1/files/../../busy_threshold",
        "/v1/files/%2e%2e/%2E%2E/busy_threshold",
        "//busy_threshold",
        "/clear_kv_blocks",
        "/openapi.json",
    ],
)
def test_control_routes_of_an_upstream_are_refused_with_the_way_to_allow_them(
    upstream, serve, path
):
    running = serve()
    status, _, body = running.request("POST", path, b"{}")
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (404, "route_not_public")
    assert "routes.extra" in error["message"]
    assert not upstream.seen
    assert running.metric("refusals_total", error_code="route_not_public") == 1


def test_listed_route_is_forwarded(upstream, serve):
    running = serve(routes={"extra": ["/busy_threshold", "/engine/*"]})
    assert running.request("POST", "/busy_threshold", b"{}")[0] == 200
    assert running.request("GET", "/engine/a/b")[0] == 200
    assert running.request("POST", "/busy_threshold/x", b"{}")[0] == 404
    assert len(upstream.seen) == 2


def test_models_can_be_read_and_not_changed(upstream, serve):
    running = serve()
    assert running.request("GET", "/v1/models/org%2Fname")[0] == 200
    assert running.request("DELETE", "/v1/models/name")[0] == 404
    assert len(upstream.seen) == 1


def test_metrics_can_be_taken_off_the_public_port(serve):
    assert serve().request("GET", "/metrics")[0] == 200
    assert serve(routes={"metrics": False}).request("GET", "/metrics")[0] == 404


@pytest.mark.parametrize("status", [b"404 Not Found", b"503 Service Unavailable"])
def test_frontend_without_a_worker_is_answered_for_in_openais_shape(upstream, serve, status):
    """Dynamo answers a bare 404, or 503 in a shape of its own, when its last worker has gone."""
    body = b'{"message":"unavailable","type":"x","code":503}'
    head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    upstream.script = lambda seen, conn: head % (status, len(body)) + body
    running = serve(workers=())
    code, headers, said = running.complete([1, 2, 3, 4])
    assert (code, json.loads(said)["error"]["code"]) == (503, "no_worker")
    assert headers["retry-after"] == "1"
    with_worker = serve(workers=(1,))
    code, _, said = with_worker.complete([1, 2, 3, 4])
    assert (code, said) == (int(status[:3]), body)
