"""The audited door: changes are bounded, all or nothing, and can be rolled back."""

import json

import pytest

from wardrop._core import Gateway
from wardrop.control import AuditLog, Door, SettingError, read_audit


@pytest.fixture
def gateway():
    native = Gateway(json.dumps({"listen": "127.0.0.1:0", "routing": {"queue": {"kappa": 10}}}))
    yield native
    native.stop()


@pytest.fixture
def door(gateway, tmp_path):
    return Door(gateway, AuditLog(tmp_path / "audit.jsonl"))


def test_change_is_in_force_and_recorded_with_author_and_reason(gateway, door, tmp_path) -> None:
    record = door.change({"kappa": 20}, "hand", "short prompts first", {"p99_s": 1.5})
    assert json.loads(gateway.routing())["queue"]["kappa"] == 20
    (written,) = read_audit(tmp_path / "audit.jsonl")
    assert written == record
    assert (written.by, written.before, written.after) == ("hand", 10, 20)
    assert written.evidence == {"p99_s": 1.5}


def test_several_settings_change_together_or_not_at_all(gateway, door) -> None:
    before = gateway.routing()
    with pytest.raises(SettingError, match="backlog_s"):
        door.change({"kappa": 5, "backlog_s": -1}, "hand", "")
    assert gateway.routing() == before
    door.change({"policy": "toll", "objective.e2e": 2, "kappa": 5}, "hand", "")
    now = json.loads(gateway.routing())
    assert (now["policy"]["name"], now["policy"]["e2e"], now["queue"]["kappa"]) == ("toll", 2, 5)


def test_switch_of_the_queue_is_a_setting_too(gateway, door) -> None:
    record = door.change({"share_passes": False}, "hand", "")
    assert (record.before, record.after) == (True, False)
    assert json.loads(gateway.routing())["queue"]["share_passes"] is False
    assert door.settings()["share_passes"] is False


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "no change"),
        ({"kapa": 1}, "did you mean 'kappa'"),
        ({"kappa": "much"}, "expected a number"),
        ({"kappa": True}, "expected a number"),
        ({"kappa": float("nan")}, "expected 0 to 100"),
        ({"max_requests": 1.5}, "whole number"),
        ({"queue": 1}, "true or false"),
        ({"share_passes": 1}, "true or false"),
        ({"policy": "no_such"}, "no_such"),
        ({"policy": "dynamo(no_such=1)"}, "no_such"),
        ({"policy": ["toll"]}, "expected NAME"),
        ({"objective.ttft": 1}, "expected policy=toll with it"),
        ({"queue": False, "kappa": 1}, "without a queue"),
        ({"policy": "toll", "objective.ttft": 0}, "goal"),
        ({"kappa": 10}, "values in force"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(gateway, door, changes, text) -> None:
    before = gateway.routing()
    with pytest.raises(SettingError, match=text):
        door.change(changes, "hand", "")
    assert gateway.routing() == before
    assert door.records() == []


def test_roll_back_undoes_the_youngest_first_and_refers_to_its_change(gateway, door) -> None:
    begin = gateway.routing()
    first = door.change({"kappa": 20}, "hand", "")
    second = door.change({"queue": False, "policy": "toll"}, "controller", "")
    with pytest.raises(SettingError, match="roll back in order"):
        door.roll_back("hand", "", number=first.number)
    undone = door.roll_back("controller", "worse", {"p99_s": 9.0}, number=second.number)
    assert (undone.event, undone.of) == ("rolled_back", second.number)
    assert json.loads(gateway.routing())["queue"]["kappa"] == 20
    door.roll_back("hand", "")
    assert gateway.routing() == begin
    with pytest.raises(SettingError, match="without a change in force"):
        door.roll_back("hand", "")


def test_history_and_records_are_bounded(door) -> None:
    for i in range(2000):
        door.change({"kappa": i % 7}, "controller", "x" * 10_000)
    assert len(door.records(5000)) == 1024
    assert all(len(record.reason) <= 500 for record in door.records())
    for _ in range(256):
        door.roll_back("hand", "")
    with pytest.raises(SettingError, match="without a change in force"):
        door.roll_back("hand", "")
