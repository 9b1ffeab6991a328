"""Token ids replace Dynamo's own only while every dry run shows the same ids."""

import json
from pathlib import Path

import pytest
from tests.gateway.conftest import Seen, Upstream
from tests.waiting import wait_until

TEXT_IDS = [0]
CHAT_IDS = [1]
TOKENIZER = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": None,
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "one": 1}, "unk_token": "[UNK]"},
}


class Dynamo:
    """Answers dry runs with the ids of a tokeniser that knows the whole text `one` alone."""

    def __init__(self, upstream: Upstream) -> None:
        self.text_ids = TEXT_IDS
        self.chat_ids = CHAT_IDS
        self.dry_runs = 0
        upstream.script = self.answer

    def answer(self, seen: Seen, conn: object) -> bytes:
        body = json.loads(seen.body)
        if (body.get("nvext") or {}).get("annotations") != ["query_instance_id:"]:
            return ok({})
        assert body["stream"] is False
        self.dry_runs += 1
        if body.get("continue_final_message"):
            # The template prints no message, so that no message can be continued.
            return b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}"
        ids = self.chat_ids if "messages" in body else self.text_ids
        return ok({"nvext": {"token_ids": ids}})


def ok(content: object) -> bytes:
    body = json.dumps(content).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "one"}))
    return tmp_path


def register(running, folder: Path, **fields: object) -> None:
    model = {"name": "m", "block_size": 4, "folder": str(folder), **fields}
    running.gateway.upsert_model(json.dumps(model))


def report(running) -> dict:
    return json.loads(running.gateway.status())["models"][0]["handover"] or {"checks": 0}


def handed_ids(running, upstream: Upstream) -> list[int] | None:
    """The ids in the body that Dynamo gets for a text prompt."""
    body = json.dumps({"model": "m", "prompt": "some text", "stream": True}).encode()
    assert running.request("POST", "/v1/completions", body)[0] == 200
    bodies = [json.loads(seen.body) for seen in upstream.seen]
    forwarded = [body for body in bodies if body.get("prompt") == "some text" and body["stream"]]
    return (forwarded[-1].get("nvext") or {}).get("token_data")


def await_check(running, number: int = 1) -> None:
    wait_until(lambda: report(running)["checks"] >= number, f"comparison {number} of token ids")


def test_ids_are_handed_over_after_every_sample_agreed(upstream, serve, folder):
    dynamo, running = Dynamo(upstream), serve()
    register(running, folder)
    await_check(running)
    assert report(running)["difference"] is None
    assert {shape["shape"] for shape in report(running)["shapes"] if shape["handed_over"]} == {
        "text",
        "plain",
        "parts",
        "tools",
        "tool_calls",
        "options",
    }
    assert dynamo.dry_runs > 20
    assert handed_ids(running, upstream) == TEXT_IDS


def test_one_different_sample_keeps_every_prompt_with_dynamo(upstream, serve, folder):
    dynamo, running = Dynamo(upstream), serve()
    dynamo.chat_ids = [1, 1]
    register(running, folder)
    await_check(running)
    assert "1 ids here, 2 there" in report(running)["difference"]
    assert running.metric("token_id_differences_total") == 1
    assert handed_ids(running, upstream) is None


def test_difference_over_a_prompt_of_a_client_ends_the_handover(upstream, serve, folder):
    dynamo, running = Dynamo(upstream), serve()
    register(running, folder)
    await_check(running)
    dynamo.text_ids = [7]
    assert handed_ids(running, upstream) == TEXT_IDS
    wait_until(lambda: report(running)["difference"], "the difference")
    assert running.metric("token_id_differences_total") == 1
    assert "prompt of a client" in report(running)["difference"]
    assert handed_ids(running, upstream) is None


def test_restarted_frontend_is_compared_before_it_gets_ids(upstream, serve, folder):
    dynamo, running = Dynamo(upstream), serve()
    register(running, folder)
    await_check(running)
    restarted = Upstream()
    try:
        other = Dynamo(restarted)
        other.text_ids = [7]
        running.gateway.set_upstreams([restarted.url])
        wait_until(lambda: report(running)["difference"], "a comparison with the other frontend")
        assert handed_ids(running, restarted) is None
        running.gateway.set_upstreams([upstream.url])
        wait_until(lambda: report(running)["difference"] is None, "another comparison")
        assert handed_ids(running, upstream) == TEXT_IDS
        assert dynamo.dry_runs > other.dry_runs > 20
    finally:
        restarted.close()


def test_new_checksum_is_compared_before_ids_are_handed_over(upstream, serve, folder):
    """After a rolling update the same folder may hold another template."""
    dynamo, running = Dynamo(upstream), serve()
    register(running, folder, checksums=["old"])
    await_check(running)
    dynamo.text_ids = [7]
    register(running, folder, checksums=["new"])
    assert handed_ids(running, upstream) is None
    await_check(running)
    assert report(running)["difference"] is not None
    assert handed_ids(running, upstream) is None


def test_workers_with_different_cards_get_no_ids(upstream, serve, folder):
    dynamo, running = Dynamo(upstream), serve()
    register(running, folder, checksums=["a", "b"])
    assert handed_ids(running, upstream) is None
    assert dynamo.dry_runs == 0


def test_recheck_pauses_the_handover_and_resumes_it(upstream, serve, folder):
    dynamo, running = Dynamo(upstream), serve()
    register(running, folder)
    await_check(running)
    before = dynamo.dry_runs
    running.gateway.recheck_model("m")
    await_check(running, 2)
    assert dynamo.dry_runs > before
    assert handed_ids(running, upstream) == TEXT_IDS
