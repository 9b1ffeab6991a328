"""The advice as a configuration file for `wardrop dynamo --config`."""

from __future__ import annotations

from typing import Any

import msgspec

from wardrop.advise.advice import Advice
from wardrop.advise.question import Question


def deployment(question: Question, advice: Advice) -> str:
    """The configuration to deploy, as YAML with a comment on its origin."""
    policy = advice.policy
    routing: dict[str, Any] = {"policy": policy.name, "queue": policy.queue is not None}
    if policy.parameters:
        routing["parameters"] = {name: float(value) for name, value in policy.parameters.items()}
    if policy.queue:
        routing["queue_parameters"] = {name: float(v) for name, v in policy.queue.items()}
    stages: dict[str, Any] = {"routing": routing}
    if policy.predicted is not None:
        stages["predicted"] = {"used": "alone"} | policy.predicted
    head = [
        "# Written by `wardrop advise`. Use: wardrop dynamo --config THIS_FILE",
        f"# Objective {question.objective}; cost relative to {question.running.label}: "
        f"{advice.ratios[1.0]}.",
    ]
    if advice.split is not None:
        prefill, decode = advice.split
        head.append(
            f"# The fleet of this advice has {prefill} prefill and {decode} decode workers."
        )
    return "\n".join(head) + "\n" + msgspec.yaml.encode(stages).decode()
