"""A file that cannot be read costs the knowledge of prompts; the model is still served."""

import json
from base64 import b64encode
from pathlib import Path

import pytest

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
VOCABULARY = {"[UNK]": 0, "one": 1, "two": 2, "three": 3, "four": 4}
TOKENIZER = {
    "version": "1.0",
    "truncation": {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    },
    "padding": None,
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"},
    "post_processor": None,
    "decoder": None,
    "model": {"type": "WordLevel", "vocab": VOCABULARY, "unk_token": "[UNK]"},
}
WITHOUT_DRY_RUNS = {"handover": False}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "one two three four"}]}


def write_model(folder: Path, **files: object) -> Path:
    """A model folder; a file whose content is None is left out, and text is written as it is."""
    content: dict[str, object] = {
        "tokenizer.json": TOKENIZER,
        "tokenizer_config.json": {"chat_template": TEMPLATE},
        **{name.replace("__", "."): value for name, value in files.items()},
    }
    for name, value in content.items():
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            (folder / name).write_text(text)
    return folder


def register(running, folder: Path, **fields: object) -> dict[str, object]:
    """Registers the folder's model; its report."""
    model = {"name": "m", "block_size": 4, "context_length": 4096, "folder": str(folder), **fields}
    running.gateway.upsert_model(json.dumps(model))
    return json.loads(running.gateway.status())["models"][0]


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({"tokenizer_config__json": {"chat_template": "{% for %}"}}, "chat template"),
        ({"tokenizer_config__json": "{"}, "tokenizer_config.json"),
        ({"tokenizer_config__json": "[]"}, "tokenizer_config.json"),
        ({"tokenizer_config__json": {"chat_template": 5}}, "tokenizer_config.json"),
        ({"tokenizer__json": "{}"}, "tokenizer.json"),
        ({"tokenizer__json": "{" * 1000}, "tokenizer.json"),
        ({"tokenizer__json": None, "tiktoken__model": "no ranks"}, "tiktoken.model"),
        ({"chat_template__json": "[]"}, "chat_template.json"),
    ],
)
def test_unreadable_file_leaves_model_and_workers_in_service(
    upstream, serve, tmp_path, files, problem
):
    running = serve(prompt=WITHOUT_DRY_RUNS)
    report = register(running, write_model(tmp_path, **files))
    assert any(problem in text for text in report["problems"])
    assert running.request("GET", "/ready")[0] == 200
    assert running.complete([1, 2, 3, 4])[0] == 200, "token prompts need no file"
    assert upstream.seen[0].header("x-dynamo-worker-instance-id") in ("1", "2")
    body = json.dumps(CHAT).encode()
    assert running.request("POST", "/v1/chat/completions", body)[0] == 200
    assert running.metric("abstentions_total", reason="no_tokeniser") == 1


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config__json": {}, "chat_template__json": {"chat_template": TEMPLATE}},
        {"tokenizer_config__json": {}, "chat_template__jinja": TEMPLATE},
        {"chat_template__jinja": TEMPLATE, "chat_template__json": {"chat_template": "other"}},
    ],
)
def test_template_is_found_where_dynamo_finds_it(upstream, serve, tmp_path, files):
    running = serve(prompt=WITHOUT_DRY_RUNS)
    report = register(running, write_model(tmp_path, **files))
    assert (report["has_template"], report["problems"]) == (True, [])
    body = json.dumps(CHAT).encode()
    assert running.request("POST", "/v1/chat/completions", body)[0] == 200
    # Four words are one block: neither the truncation of the file nor another template counts.
    assert running.metric("input_tokens_total", model="m") == 4


def test_template_of_the_card_replaces_the_template_of_the_model(upstream, serve, tmp_path):
    custom = tmp_path / "custom.jinja"
    custom.write_text("one")
    running = serve(prompt=WITHOUT_DRY_RUNS)
    folder = tmp_path / "model"
    folder.mkdir()
    register(running, write_model(folder), card={"chat_template_file": str(custom)})
    assert running.request("POST", "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200
    assert running.metric("input_tokens_total", model="m") == 1


def test_template_of_the_card_that_is_missing_here_ends_the_knowledge_of_chats(serve, tmp_path):
    running = serve(prompt=WITHOUT_DRY_RUNS)
    card = {"chat_template_file": str(tmp_path / "elsewhere.jinja")}
    report = register(running, write_model(tmp_path), card=card)
    assert (report["has_tokeniser"], report["has_template"]) == (True, False)
    assert "elsewhere.jinja" in str(report["problems"])


def test_anthropic_request_is_placed_by_its_prompt(upstream, serve, tmp_path):
    running = serve(prompt=WITHOUT_DRY_RUNS)
    register(running, write_model(tmp_path))
    body = {**CHAT, "max_tokens": 1, "system": [{"type": "text", "text": "one two three four"}]}
    assert running.request("POST", "/v1/messages", json.dumps(body).encode())[0] == 200
    assert upstream.seen[0].header("x-dynamo-worker-instance-id") in ("1", "2")
    assert running.metric("input_tokens_total", model="m") == 7, "the middle word is one unknown"


def test_new_checksum_has_the_files_read_again(upstream, serve, tmp_path):
    running = serve(prompt=WITHOUT_DRY_RUNS)
    register(running, write_model(tmp_path), checksums=["a"])
    write_model(tmp_path, tokenizer_config__json={"chat_template": "one"})
    register(running, tmp_path, checksums=["b"])
    assert running.request("POST", "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200
    assert running.metric("input_tokens_total", model="m") == 1


def test_prompt_longer_than_the_context_is_not_booked(upstream, serve, tmp_path):
    running = serve(prompt=WITHOUT_DRY_RUNS)
    register(running, write_model(tmp_path), context_length=3)
    assert running.request("POST", "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200
    assert running.metric("abstentions_total", reason="too_long") == 1
    assert running.metric("decisions_total", model="m", worker_type="aggregated") == 0


def test_tiktoken_model_and_its_special_tokens_are_read(upstream, serve, tmp_path):
    ranks = "\n".join(f"{b64encode(bytes([byte])).decode()} {byte}" for byte in range(256))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = {"256": {"content": "<|turn|>", "special": True, **flags}}
    files = {
        "tokenizer.json": None,
        "tiktoken.model": ranks + "\n",
        "config.json": {"model_type": "kimi_k2"},
        "tokenizer_config.json": {
            "added_tokens_decoder": added,
            "chat_template": "<|turn|>" + TEMPLATE,
        },
    }
    named = {name.replace(".", "__"): content for name, content in files.items()}
    running = serve(prompt=WITHOUT_DRY_RUNS)
    report = register(running, write_model(tmp_path, **named))
    assert (report["has_tokeniser"], report["problems"]) == (True, [])
    assert running.request("POST", "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200
    text = CHAT["messages"][0]["content"]  # type: ignore[index]
    assert running.metric("input_tokens_total", model="m") == 1 + len(text), "one token a byte"
