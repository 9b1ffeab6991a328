from __future__ import annotations

import json

import pytest

from wardrop.dynamo.discovery.entries import decode_entry
from wardrop.dynamo.discovery.fleet_view import Feed, Worker
from wardrop.dynamo.discovery.store_reader import read_fleet_view
from wardrop.dynamo.gateway_json import model_json

U64 = 15299251528667159906


def test_worker_has_the_role_and_capacities_of_its_card(entries):
    view = read_fleet_view(entries.worker(U64, worker_type="decode").content)
    assert view.workers == {
        ("tiny", "decode", U64): Worker(
            "tiny",
            "decode",
            U64,
            "dynamo.backend.generate",
            f"127.0.0.1:4000/{U64:x}",
            total_kv_blocks=2048,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
        )
    }
    model = view.models["tiny"]
    assert (model.block_size, model.context_length, model.source_path) == (
        16,
        32768,
        "/models/tiny",
    )
    assert model.files == (("tokenizer.json", "http://h/tokenizer.json"),)
    assert view.problems == ()


def test_worker_without_a_model_card_is_not_routable(entries):
    entries.worker(1).worker(2)
    del entries.snapshot["mdc"]["dynamo/backend/generate/1"]
    assert [key[2] for key in read_fleet_view(entries.content).workers] == [2]


def test_card_without_an_instance_is_not_routable(entries):
    entries.worker(1).worker(2)
    del entries.snapshot["instances"]["dynamo/backend/generate/1"]
    assert [key[2] for key in read_fleet_view(entries.content).workers] == [2]


def test_data_parallel_ranks_are_read(entries):
    entries.worker(1, runtime_config={"data_parallel_start_rank": 4, "data_parallel_size": 2})
    (worker,) = read_fleet_view(entries.content).workers.values()
    assert (worker.dp_start, worker.dp_size, worker.total_kv_blocks) == (4, 2, None)


def test_old_card_without_worker_type_is_read_by_its_component(entries):
    entries.worker(1, component="prefill").worker(2)
    for entry in entries.snapshot["mdc"].values():
        del entry["card_json"]["worker_type"]
    assert [key[1] for key in sorted(read_fleet_view(entries.content).workers, key=str)] == [
        "aggregated",
        "prefill",
    ]


def test_feed_belongs_to_the_worker_that_its_source_names(entries):
    entries.worker(1, worker_type="decode").worker(2, worker_type="aggregated").feed(77)
    view = read_fleet_view(entries.source(77, 2).content)
    assert view.feeds[77] == Feed(
        77, "kv-events", "tcp://127.0.0.1:5000", "dynamo.backend.generate", "tiny", "aggregated", 2
    )


def test_feed_without_source_belongs_to_its_endpoint(entries):
    view = read_fleet_view(
        entries.worker(1, component="prefill")
        .worker(2, worker_type="decode")
        .feed(5, "forward-pass-metrics", "prefill")
        .feed(6, "forward-pass-metrics", "backend")
        .content
    )
    assert {p: feed.role for p, feed in view.feeds.items()} == {5: "prefill", 6: "decode"}


def test_feed_waits_for_a_worker_on_its_endpoint(entries):
    assert not read_fleet_view(entries.feed(5).content).feeds
    assert read_fleet_view(entries.worker(1).content).feeds


def test_topics_of_frontends_are_left_alone(entries):
    view = read_fleet_view(
        entries.worker(1).feed(5, "kv_metrics").feed(6, "active_sequences").snapshot
    )
    assert not view.feeds


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda entry: entry.pop("card_json"), "field 'card_json' is missing"),
        (lambda entry: entry.update(card_json=[]), "card_json: got [], expected an object"),
        (lambda entry: entry["card_json"].update(kv_cache_block_size=0), "got 0, expected"),
        (lambda entry: entry["card_json"].update(kv_cache_block_size="16"), "got '16', expected"),
        (lambda entry: entry["card_json"].update(kv_cache_block_size=2**40), "expected"),
        (lambda entry: entry["card_json"].update(display_name=""), "display_name: got ''"),
        (lambda entry: entry.update(instance_id=-1), "instance_id: got -1, expected"),
        (lambda entry: entry.update(instance_id=2**64), "unsigned 64-bit"),
        (lambda entry: entry.update(instance_id=True), "instance_id: got True"),
    ],
)
def test_unusable_entry_is_an_error_that_names_it_and_the_field(entries, spoil, says):
    entry = entries.worker(1).snapshot["mdc"]["dynamo/backend/generate/1"]
    spoil(entry)
    with pytest.raises(ValueError, match=r"^mdc/k: ") as raised:
        decode_entry("mdc", "k", json.dumps(entry).encode())
    assert says in str(raised.value)


@pytest.mark.parametrize("depth", [2_000, 400_000])
def test_deep_nesting_is_an_error_of_the_entry(entries, depth):
    text = '{"type": "Model", "card_json": ' + '{"lora":' * depth
    with pytest.raises(ValueError, match=r"^mdc/k"):
        decode_entry("mdc", "k", text.encode())


def test_large_entry_is_refused_by_its_size(entries):
    with pytest.raises(ValueError, match="expected at most 1048576"):
        decode_entry("mdc", "k", b" " * (1 << 21))


def test_unknown_role_is_reported_and_the_others_are_read(entries):
    view = read_fleet_view(entries.worker(1, worker_type="magic").worker(2).content)
    assert [key[2] for key in view.workers] == [2]
    assert view.problems == (
        "mdc/dynamo/backend/generate/1: got worker_type 'magic', expected one of aggregated, "
        "prefill, decode, encode",
    )


def test_encode_worker_takes_no_request_of_its_own(entries):
    entries.worker(1, component="encode", worker_type="encode", model_type="").worker(2)
    view = read_fleet_view(entries.content)
    assert [key[2] for key in view.workers] == [2]
    assert view.problems == ()


@pytest.mark.parametrize("blocks", [0, 2**63, None])
def test_capacity_that_says_nothing_is_unknown(entries, blocks):
    entries.worker(1, runtime_config={"total_kv_blocks": blocks, "max_num_seqs": 0})
    (worker,) = read_fleet_view(entries.content).workers.values()
    assert (worker.total_kv_blocks, worker.max_num_seqs) == (None, None)


def test_nats_event_plane_is_reported(entries):
    view = read_fleet_view(entries.worker(1).feed(5, kind="Nats").content)
    assert not view.feeds
    assert "DYN_EVENT_PLANE=zmq" in view.problems[0]


def with_adapter(entries, instance: int) -> None:
    key = f"dynamo/backend/generate/{instance:x}"
    card = {**entries.snapshot["mdc"][key]["card_json"], "display_name": "tuned"}
    entry = {**entries.snapshot["mdc"][key], "card_json": {**card, "lora": {"name": "tuned"}}}
    entries.snapshot["mdc"][f"{key}/tuned"] = entry


def test_adapter_on_every_worker_belongs_to_the_model(entries):
    entries.worker(1).worker(2)
    with_adapter(entries, 1)
    view = read_fleet_view(entries.content)
    assert view.models["tiny"].loras == ()
    assert "on 1 of 2 workers" in view.problems[0]
    with_adapter(entries, 2)
    view = read_fleet_view(entries.content)
    assert view.models["tiny"].loras == ("tuned",)
    assert list(view.models) == ["tiny"]
    assert view.problems == ()


def test_properties_of_the_card_that_change_prompts_reach_the_gateway(entries):
    runtime = {
        "tool_call_parser": "glm47",
        "reasoning_parser": "qwen3",
        "tool_call_arguments_format": "json_object",
        "exclude_tools_when_tool_choice_none": False,
        "tokenizer_backend": "fastokens",
        "runtime_data": {"default_thinking_mode": "disabled"},
    }
    template = {"hf_chat_template": {"is_custom": True, "file": {"path": "/custom.jinja"}}}
    entries.worker(
        1,
        runtime_config=runtime,
        chat_template_file=template,
        prompt_context=["oai_chat", "of a later Dynamo"],
    )
    model = read_fleet_view(entries.content).models["tiny"]
    assert json.loads(model_json(model, None))["card"] == {
        "completions_have_special_tokens": False,
        "chat_template_file": "/custom.jinja",
        "prompt_context": ["oai_chat"],
        "exclude_tools_when_tool_choice_none": False,
        "tool_call_arguments_format": "json_object",
        "tool_call_parser": "glm47",
        "reasoning_parser": "qwen3",
        "default_thinking_mode": "disabled",
        "tokenizer_backend": "fastokens",
    }


def test_odd_properties_of_the_card_cost_the_property_and_not_the_worker(entries):
    runtime = {"tool_call_parser": 5, "exclude_tools_when_tool_choice_none": "no"}
    url = {"hf_chat_template": {"is_custom": False, "file": {"path": "http://h/t.jinja"}}}
    entries.worker(1, runtime_config=runtime, chat_template_file=url, prompt_context={"a": 1})
    view = read_fleet_view(entries.content)
    assert list(view.workers) == [("tiny", "aggregated", 1)]
    assert json.loads(model_json(view.models["tiny"], None))["card"] == {
        "completions_have_special_tokens": False
    }
    assert ("chat_template.jinja", "http://h/t.jinja") in view.models["tiny"].files
