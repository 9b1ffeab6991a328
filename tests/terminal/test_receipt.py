"""`wardrop receipt`: the story and the candidates of one request."""

from __future__ import annotations

import copy
import http.client
import io
import json
from collections.abc import Iterator

import pytest
from rich.console import Console
from tests.gateway.conftest import Upstream
from tests.service.test_live_page import gateway_of, served
from typer.testing import CliRunner

from wardrop.commands.receipt import app
from wardrop.terminal.receipt import render_receipt, story

CANDIDATE = {
    "worker": {"instance": 11554574342565143337, "dp_rank": 0},
    "cost": 0.5,
    "trust": "exact",
    "listed_blocks": 12,
    "device_blocks": 12,
    "host_blocks": 1,
    "disk_blocks": 0,
    "active_requests": 3,
    "parts": {"own_first_token_s": 0.02, "own_decode_s": 0.48, "eviction_s": 0.0},
}
OTHER = CANDIDATE | {
    "worker": {"instance": 7, "dp_rank": 1},
    "cost": 0.75,
    "device_blocks": 0,
    "host_blocks": 0,
    "parts": {"own_first_token_s": 0.27, "own_decode_s": 0.48, "eviction_s": 0.0},
}
RECEIPT = {
    "request_id": "mine",
    "at_s": 1e9,
    "model": "[red]m[/red]",
    "input_tokens": 512,
    "blocks": 32,
    "regime": "below",
    "routing": {"policy": {"name": "toll"}, "queue": None},
    "queued_s": 0.25,
    "abstained": None,
    "legs": [
        {
            "role": "aggregated",
            "worker": CANDIDATE["worker"],
            "cost": 0.5,
            "margin": 0.25,
            "overlap_blocks": 13,
            "waited_s": 0.25,
            "cause": "room",
            "at_once": {"worker": {"instance": 7, "dp_rank": 1}, "cost": 2.0, "gained_s": 1.25},
            "candidates": [CANDIDATE, OTHER],
            "candidates_in_all": 40,
        }
    ],
    "outcome": {
        "how": "finished",
        "status": 200,
        "ttft_s": 0.3,
        "e2e_s": 1.5,
        "output_tokens": 40,
        "cached_tokens": 192,
        "predicted_cached_tokens": 208,
    },
}


def text_of(receipt: dict) -> str:
    console = Console(width=160, record=True, markup=False, file=io.StringIO())
    console.print(render_receipt(receipt))
    return console.export_text()


def test_receipt_shows_what_the_price_believed_of_a_worker_that_is_not_exact():
    leg = RECEIPT["legs"][0]
    fallen = OTHER | {"trust": "load_only", "listed_blocks": 31}
    text = text_of(RECEIPT | {"legs": [leg | {"candidates": [CANDIDATE, fallen]}]})
    for expected in ("listed blocks", "load only", "31"):
        assert expected in text, expected
    assert "listed blocks" not in text_of(RECEIPT)


def test_receipt_tells_price_margin_wait_and_outcome():
    text = text_of(RECEIPT)
    for expected in (
        "model [red]m[/red]: 512 prompt tokens in 32 full blocks",
        "regime below, policy toll",
        "worker …143337 at cost 500 ms, 250 ms below the next worker",
        "13 blocks of the prompt are in its cache",
        "it waited 250 ms in the router's queue, until a worker had room",
        "placed at its arrival, it would have gone to worker 7/1 at cost 2 s; with its wait the "
        "request cost 750 ms, so waiting gained 1.25 s",
        "finished with status 200, first token after 300 ms, end after 1.5 s, 40 tokens",
        "192 cached tokens reported, 208 predicted",
        "38 more expensive workers are left out",
        "own first token",
    ):
        assert expected in text, expected
    (chosen,) = [line for line in text.splitlines() if "✓" in line]
    assert "…143337" in chosen
    assert "480 ms" in chosen
    assert "7/1" in text
    assert "blocks evicted" not in text, "a part that is 0 everywhere has no column"


def test_costs_of_a_policy_without_time_have_no_unit():
    receipt = copy.deepcopy(RECEIPT)
    for one in receipt["legs"][0]["candidates"]:
        one["parts"] = {"prefill_blocks": 20.0, "decode_blocks": 3.0}
    receipt["legs"][0] |= {"cost": 23.0, "margin": -1.5, "waited_s": 0.0, "cause": "at_once"}
    lines = "\n".join(story(receipt))
    assert "at cost 23, 1.5 above the cheapest worker" in lines
    assert "it was placed at once" in lines


def test_decision_of_the_static_rule_is_said_with_its_reason():
    receipt = copy.deepcopy(RECEIPT)
    assert "static rule" not in "\n".join(story(receipt))
    receipt["legs"][0]["misfit"] = "first_tokens_unreported"
    reason = "requests end and their first tokens are not reported"
    assert f"a static rule decided: {reason}" in story(receipt)


def test_wait_that_lost_time_is_said_and_a_cost_without_a_unit_claims_no_gain():
    receipt = copy.deepcopy(RECEIPT)
    receipt["legs"][0]["at_once"] |= {"cost": 0.6, "gained_s": -0.15}
    assert "so waiting lost 150 ms" in "\n".join(story(receipt))
    receipt["legs"][0]["at_once"]["gained_s"] = None
    lines = [line for line in story(receipt) if "placed at its arrival" in line]
    assert lines == ["placed at its arrival, it would have gone to worker 7/1 at cost 0.6"]


def test_client_that_left_before_the_answer_has_no_status():
    outcome = {"how": "client_left", "status": 0, "ttft_s": None, "e2e_s": None}
    left = RECEIPT["outcome"] | outcome | {"output_tokens": None, "cached_tokens": None}
    assert story(RECEIPT | {"outcome": left})[-1] == "outcome: client left"


def test_abstention_and_open_answer_are_said():
    lines = story(RECEIPT | {"abstained": "batch", "legs": [], "outcome": None})
    assert "the router left the choice to Dynamo: batch" in lines
    assert lines[-1] == "the answer is still on its way"


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    scripted = Upstream()
    yield scripted
    scripted.close()


def test_command_prints_the_receipt_of_a_real_request(upstream):
    model = ("m", "aggregated", (11554574342565143337, 2))
    with gateway_of(model, upstream=upstream.url) as gateway, served(gateway) as api:
        conn = http.client.HTTPConnection("127.0.0.1", gateway.start(), timeout=30)
        body = json.dumps({"model": "m", "prompt": list(range(64)), "max_tokens": 1})
        headers = {"content-type": "application/json", "x-request-id": "a/b?c"}
        conn.request("POST", "/v1/completions", body, headers)
        assert conn.getresponse().status == 200
        conn.close()
        ran = CliRunner().invoke(app, ["a/b?c", "--url", api.url], env={"COLUMNS": "160"})
        assert ran.exit_code == 0, ran.output
        assert "64 prompt tokens in 16 full blocks" in ran.output
        assert "own first token" in ran.output
        raw = CliRunner().invoke(app, ["a/b?c", "--json", "--url", api.url])
        assert json.loads(raw.stdout)["request_id"] == "a/b?c"
        unknown = CliRunner().invoke(app, ["other", "--url", api.url])
        assert unknown.exit_code == 1
        assert "expected the x-request-id of one of the last 8 requests" in unknown.output
