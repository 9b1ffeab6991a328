"""Which workers may be pinned: Dynamo's rules for configurations, namespaces and complete sets."""

from __future__ import annotations

import pytest

from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.scope import Scope, choose_scope
from wardrop.dynamo.discovery.store_reader import StoreReader, read_fleet_view

OTHER_TEMPLATE = {"hf_chat_template": {"is_custom": True, "file": {"path": "/t", "checksum": "2"}}}


def ids(view: FleetView) -> list[int]:
    return sorted(key[2] for key in view.workers)


def remove(entries, instance: int, place: str = "dynamo/backend") -> None:
    for bucket in ("instances", "mdc"):
        del entries.snapshot[bucket][f"{place}/generate/{instance:x}"]


def test_model_in_two_namespaces_is_left_to_dynamo_until_one_remains(entries):
    reader = StoreReader()
    assert not reader.read(entries.worker(1).content).models["tiny"].left_to_dynamo
    view = reader.read(entries.worker(2, namespace="dynamo-v2").content)
    assert view.models["tiny"].left_to_dynamo
    assert ids(view) == [1, 2], "both stay known, so that the index is warm afterwards"
    assert "one of 2 worker sets" in view.problems[0]
    remove(entries, 1)
    view = reader.read(entries.content)
    assert (ids(view), view.models["tiny"].left_to_dynamo, view.problems) == ([2], False, ())


def test_another_model_in_another_namespace_changes_nothing(entries):
    entries.worker(1).worker(2, namespace="b", display_name="other")
    view = read_fleet_view(entries.content)
    assert not any(model.left_to_dynamo for model in view.models.values())
    assert view.problems == ()


def test_workers_with_another_configuration_wait_until_the_first_has_left(entries):
    reader = StoreReader()
    assert ids(reader.read(entries.worker(1).worker(2).content)) == [1, 2]
    entries.worker(3, chat_template_file=OTHER_TEMPLATE)
    view = reader.read(entries.content)
    assert (ids(view), view.models["tiny"].left_to_dynamo) == ([1, 2], False)
    assert "1 of 3 workers of model 'tiny' have another configuration" in view.problems[0]
    remove(entries, 1)
    assert ids(reader.read(entries.content)) == [2]
    remove(entries, 2)
    view = reader.read(entries.content)
    assert (ids(view), view.models["tiny"].left_to_dynamo, view.problems) == ([3], False, ())


def test_configurations_that_are_found_together_leave_the_model_to_dynamo(entries):
    entries.worker(1).worker(2, chat_template_file=OTHER_TEMPLATE)
    reader = StoreReader()
    view = reader.read(entries.content)
    assert view.models["tiny"].left_to_dynamo, "nothing says which one a frontend serves"
    assert len(view.models["tiny"].checksums) == 2
    remove(entries, 1)
    assert not reader.read(entries.content).models["tiny"].left_to_dynamo


def test_restarted_frontend_makes_the_order_of_configurations_unknown(entries):
    reader = StoreReader()
    reader.read(entries.worker(1).content)
    entries.worker(2, chat_template_file=OTHER_TEMPLATE)
    assert not reader.read(entries.content).models["tiny"].left_to_dynamo
    reader.forget_order()
    assert reader.read(entries.content).models["tiny"].left_to_dynamo


@pytest.mark.parametrize(
    "changes",
    [
        {"chat_template_file": OTHER_TEMPLATE},
        {"source_path": "/models/other"},
        {"context_length": 1024},
        {"aliases": ["t"]},
        {"needs": [["prefill"]]},
        {"router_config": {"router_mode": "kv"}},
        {"runtime_config": {"context_length": 99}},
        {"runtime_config": {"runtime_data": {"vllm_inference_v1_generate": True}}},
        {"extra_files": [{"path": "/a/x.json", "checksum": "1"}]},
    ],
)
def test_every_field_of_dynamos_checksum_makes_a_configuration(entries, changes):
    cards = entries.worker(1).worker(2, **changes).content["mdc"].values()
    assert len({entry.card_json.checksum for entry in cards}) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"runtime_config": {"total_kv_blocks": 7}},
        {"migration_limit": 3},
        {"tokenizer": {"hf_tokenizer_json": {"path": "http://another-worker/tokenizer.json"}}},
        {"user_data": {"a": 1}},
    ],
)
def test_other_fields_make_no_configuration(entries, changes):
    cards = entries.worker(1).worker(2, **changes).content["mdc"].values()
    assert len({entry.card_json.checksum for entry in cards}) == 1


def split(entries, namespace: str, first: int) -> None:
    place = {"namespace": namespace}
    entries.worker(first, component="prefill", needs=[["decode"]], **place)
    entries.worker(first + 1, worker_type="decode", needs=[["prefill"]], **place)


def test_prefill_and_decode_workers_are_one_serving_set(entries):
    split(entries, "dynamo", 1)
    view = read_fleet_view(entries.content)
    assert {key[1] for key in view.workers} == {"prefill", "decode"}
    assert not view.models["tiny"].left_to_dynamo
    assert len(view.models["tiny"].checksums) == 1


def test_namespace_without_a_complete_set_is_not_served(entries):
    split(entries, "a", 1)
    entries.worker(7, component="prefill", needs=[["decode"]], namespace="b")
    view = read_fleet_view(entries.content)
    assert (ids(view), view.models["tiny"].left_to_dynamo) == ([1, 2], False)
    assert "namespace 'b' has no complete set" in view.problems[0]
    entries.worker(8, worker_type="decode", needs=[["prefill"]], namespace="b")
    assert read_fleet_view(entries.content).models["tiny"].left_to_dynamo


def test_workers_of_an_incomplete_namespace_join_when_nothing_else_serves(entries):
    entries.worker(7, component="prefill", needs=[["decode"]])
    assert ids(read_fleet_view(entries.content)) == [7]


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        (Scope(), [1, 2, 3]),
        (Scope(exact="app"), [1]),
        (Scope(prefix="app"), [1, 2, 3]),
        (Scope(prefix="app", generations=True), [1, 2]),
    ],
)
def test_scope_admits_the_namespaces_that_a_frontend_sees(entries, scope, expected):
    entries.worker(1, namespace="app").worker(2, namespace="app-0123abcd")
    entries.worker(3, namespace="apple")
    assert ids(read_fleet_view(entries.content, scope)) == expected


@pytest.mark.parametrize(
    ("settings", "arguments", "environment", "expected"),
    [
        (("", ""), [], {}, Scope()),
        (("", ""), [], {"DYN_NAMESPACE": "dynamo"}, Scope()),
        (("", ""), [], {"DYN_NAMESPACE": "a"}, Scope(exact="a")),
        (("b", ""), [], {"DYN_NAMESPACE": "a"}, Scope(exact="b")),
        (("b", ""), ["--namespace=c"], {"DYN_NAMESPACE": "a"}, Scope(exact="c")),
        (("b", "p"), ["--namespace", "c"], {}, Scope(prefix="p")),
        (("b", ""), [], {"DYN_NAMESPACE_PREFIX": "dynamo"}, Scope()),
        (("", ""), ["--namespace-prefix", "q"], {"DYN_NAMESPACE_PREFIX": "r"}, Scope(prefix="q")),
    ],
)
def test_scope_is_that_of_the_frontends(settings, arguments, environment, expected):
    assert choose_scope(*settings, arguments, environment) == expected
