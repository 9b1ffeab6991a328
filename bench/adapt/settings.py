"""What the controller may choose: the static settings, and how a run moves from one to another."""

from __future__ import annotations

from typing import Any

from wardrop.calls import Call
from wardrop.replay import Policy

DEFAULT = "toll+queue(kappa=10)"
E2E = "toll(ttft=0,e2e=1)"
STATIC = [
    "toll",
    "toll+queue(kappa=0)",
    "toll+queue(kappa=3)",
    DEFAULT,
    "toll+queue(kappa=30)",
    "toll+queue(kappa=10,patience=0)",
    E2E,
    f"{E2E}+queue(kappa=10)",
]
"""Price alone or with the queue; κ and patience of the queue; the objective of the price."""

CONTROLLER = "toll+queue+controller"
"""The shipped controller, which changes κ and `backlog_s` (the room)."""

_QUEUE = {"kappa": 10.0, "patience": 4.0, "backlog_s": 1.0, "max_requests": 4096}
"""The queue's defaults, in force again where a setting does not name a parameter."""


def changes(setting: str) -> dict[str, Any]:
    """The changes that bring `setting` into force, regardless of the settings before."""
    policy = Policy.parse(setting)
    found: dict[str, Any] = {"policy": str(Call(policy.name, policy.parameters))}
    found["queue"] = policy.queue is not None
    return found | (_QUEUE | policy.queue if policy.queue is not None else {})
