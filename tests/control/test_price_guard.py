"""A fall and a return of the price guard, in the audit."""

from __future__ import annotations

import json
from typing import Any

from wardrop._core import Gateway
from wardrop.control.door import Door
from wardrop.control.loop import ControlLoop

NAME = "price_guard: m, aggregated"


def polled(misfit: str | None) -> dict[str, Any]:
    return {"pools": [{"model": "m", "role": "aggregated", "misfit": misfit}]}


def test_each_change_of_the_guard_is_marked_once_in_the_audit() -> None:
    routing = {"policy": {"name": "toll"}, "queue": {"kappa": 10}}
    gateway = Gateway(json.dumps({"listen": "127.0.0.1:0", "routing": routing}))
    door = Door(gateway)
    loop = ControlLoop(gateway, door, acts=False)
    for misfit in (None, "steps_unpredicted", "steps_unpredicted", None, None):
        loop._note_misfits(polled(misfit))
    marks = [record for record in door.records() if record.event == "price_guard"]
    assert [(mark.setting, mark.before, mark.after) for mark in marks] == [
        (NAME, "price", "steps_unpredicted"),
        (NAME, "steps_unpredicted", "price"),
    ]
    assert {mark.by for mark in marks} == {"price guard"}
