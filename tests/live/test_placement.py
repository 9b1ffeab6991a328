"""Where requests go: prefixes, pins, splits, abstentions, and the counters of each."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.live.client import get
from tests.live.router import SPREADING, Router, cached_tokens, instance, running, served_by
from tests.waiting import wait_until

from wardrop.dynamo.embedded import Fleet, FleetSpec, split_fleet
from wardrop.dynamo.ports import free_port

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def fleet(private_network: None) -> Iterator[Fleet]:
    with Fleet(FleetSpec(workers=3, speedup_ratio=20)) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def router(fleet: Fleet) -> Iterator[Router]:
    with running(fleet, *SPREADING) as router:
        router.await_handover()
        yield router


@pytest.fixture(scope="module")
def split(private_network: None) -> Iterator[Router]:
    spec = split_fleet("2x2", FleetSpec(speedup_ratio=20))
    with Fleet(spec) as fleet, running(fleet, *SPREADING) as router:
        router.await_handover()
        yield router


def conversation(number: int, turns: int) -> list[int]:
    """Token ids of a conversation that no other number shares; 10 whole blocks and a bit a turn.

    Not a multiple of the block size: of a prompt that it holds whole, an engine computes the last
    block again and reports it as not cached.
    """
    return [1000 + (number * 977 + i * 31) % 7000 for i in range(165 * turns)]


def test_second_turn_goes_where_the_first_left_its_blocks(router: Router):
    for number in range(6):
        first = router.complete_and_learn(conversation(number, 1))
        blocks = first.json()["usage"]["prompt_tokens"] // 16
        holder = instance(first)
        second = router.complete(conversation(number, 2))
        assert instance(second) == holder
        assert served_by(second) == (holder, holder)
        assert cached_tokens(second) == blocks * 16
        assert int(second.headers["x-wardrop-overlap-blocks"]) * 16 == cached_tokens(second)


def test_a_router_without_flags_prices_queues_and_keeps_receipts(fleet: Fleet):
    port = free_port()
    with running(fleet, "--admin-port", str(port)) as router:
        first = router.complete_and_learn(conversation(300, 1))
        second = router.complete(conversation(300, 2))
        assert instance(second) == instance(first)
        assert "x-wardrop-queue-ms" in second.headers
        settings = get(f"http://127.0.0.1:{port}", "/v1/settings").json()["settings"]
        assert settings["policy"] == "toll"
        request_id = second.headers["x-request-id"]
        receipt = get(f"http://127.0.0.1:{port}", f"/v1/receipts/{request_id}")
        assert receipt.status == 200


def test_prediction_equals_what_the_engine_reports(router: Router):
    before = router.metrics()
    for number in range(20, 26):
        router.complete_and_learn(conversation(number, 1))
        answer = router.complete(conversation(number, 3))
        assert int(answer.headers["x-wardrop-overlap-blocks"]) * 16 == cached_tokens(answer)
    after = router.metrics()

    def grown(name: str) -> float:
        return after.total(name) - before.total(name)

    reported = grown("wardrop_cached_tokens_reported_total")
    assert reported == 6 * 160
    assert grown("wardrop_cached_tokens_predicted_total") == reported


def test_cold_prompts_use_every_worker(router: Router):
    used = {instance(router.complete(conversation(100 + n, 2))) for n in range(30)}
    assert used == {i for worker in router.fleet.workers for i in worker.instances}


def test_text_prompts_are_handed_over_and_hit_the_same_blocks(router: Router):
    chat = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "tell me about lorem ipsum " * 20}],
        "max_tokens": 2,
        "nvext": {"extra_fields": ["worker_id"]},
    }
    handed = router.metrics().total("wardrop_token_id_handovers_total")
    first = router.post("/v1/chat/completions", chat)
    wait_until(
        lambda: cached_tokens(router.post("/v1/chat/completions", chat)) > 64, "a cached answer"
    )
    second = router.post("/v1/chat/completions", chat)
    assert instance(first) == instance(second)
    assert int(second.headers["x-wardrop-overlap-blocks"]) * 16 == cached_tokens(second)
    assert router.metrics().total("wardrop_token_id_handovers_total") >= handed + 3
    assert router.metrics().total("wardrop_prompt_length_mismatches_total") == 0


def test_split_pins_prefill_and_decode(split: Router):
    prefill = {i for w in split.fleet.workers if w.role == "prefill" for i in w.instances}
    decode = {i for w in split.fleet.workers if w.role == "decode" for i in w.instances}
    used: set[tuple[int, int]] = set()
    for number in range(16):
        answer = split.complete(conversation(number, 1))
        assert answer.status == 200
        pair = served_by(answer)
        assert pair[0] in prefill
        assert pair[1] in decode
        assert instance(answer) == pair[0]
        used.add(pair)
    assert {pair[0] for pair in used} == prefill
    assert {pair[1] for pair in used} == decode
    metrics = split.metrics()
    roles = metrics.by("wardrop_decisions_total", "worker_type")
    assert roles["prefill"] == roles["decode"] >= 16


def test_split_second_turn_goes_to_the_same_prefill_worker(split: Router):
    for number in range(30, 34):
        first = split.complete_and_learn(conversation(number, 1))
        second = split.complete(conversation(number, 2))
        assert served_by(second)[0] == served_by(first)[0]
        assert int(second.headers["x-wardrop-overlap-blocks"]) >= 10


def test_image_is_left_to_dynamo_and_counted(router: Router):
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "what?"}, part]}],
        "max_tokens": 2,
    }
    before = router.metrics().total("wardrop_abstentions_total")
    answer = router.post("/v1/chat/completions", body)
    direct = get(router.url, "/v1/models")
    assert direct.status == 200
    assert router.metrics().total("wardrop_abstentions_total") == before + 1
    assert answer.status in (200, 400), "Dynamo's own answer: a text model may refuse the image"
    assert "x-wardrop-worker" not in answer.headers


def test_other_template_is_found_out_and_the_request_still_served(
    private_network: None, tmp_path: Path
):
    """Dynamo reads the template when it starts; ours is changed afterwards."""
    with Fleet(FleetSpec(workers=1)) as plain:
        shutil.copytree(plain.model, tmp_path / "model")
    with Fleet(FleetSpec(workers=2, model=tmp_path / "model", speedup_ratio=20)) as fleet:
        fleet.add_frontend("kv")
        file = tmp_path / "model" / "tokenizer_config.json"
        changed = json.loads(file.read_text())
        changed["chat_template"] = "OTHER " + changed["chat_template"]
        file.write_text(json.dumps(changed))
        with running(fleet, "--upstream", fleet.frontends[0].url) as router:
            router.await_ready()
            wait_until(
                lambda: router.metrics().total("wardrop_token_id_differences_total") == 1,
                "the difference between the templates",
            )
            chat = {"messages": [{"role": "user", "content": "one two"}]}
            for fields in (chat, {"prompt": "one two"}):
                path = "/v1/chat/completions" if fields is chat else "/v1/completions"
                answer = router.post(path, {"model": "tiny", "max_tokens": 2, **fields})
                assert answer.status == 200
                assert "x-wardrop-worker" in answer.headers, "our ids are still a hint"
            assert router.metrics().total("wardrop_token_id_handovers_total") == 0
            theirs = get(fleet.frontends[0].url, "/v1/models")
            assert theirs.status == 200


def test_metrics_follow_the_conventions(router: Router):
    router.complete("one two three")
    metrics = router.metrics()
    ours = {name for name in metrics.names() if name.startswith("wardrop_")}
    for name in (
        "wardrop_requests_total",
        "wardrop_abstentions_total",
        "wardrop_decision_seconds_count",
        "wardrop_time_to_first_token_seconds_count",
        "wardrop_cached_tokens_predicted_total",
        "wardrop_cached_tokens_reported_total",
        "wardrop_worker_active_requests",
        "wardrop_kv_events_total",
        "wardrop_worker_event_gaps_total",
    ):
        assert name in ours, f"{name} is missing of {sorted(ours)}"
    stages = metrics.by("wardrop_decision_seconds_count", "stage")
    assert {"tokenise", "hash"} <= {stage for stage, count in stages.items() if count > 0}
    assert metrics.total("wardrop_kv_events_total", result="applied") > 0
    assert metrics.total("wardrop_requests_total", code="200") > 0
    wait_until(
        lambda: router.metrics().total("wardrop_worker_active_requests") == 0, "no load when idle"
    )
    prompts = ("one two three", "tell me about")
    assert not any(prompt in router.log + metrics.text for prompt in prompts)
