"""Shadow policies as text, in the form of a flag: `dynamo;sticky;toll(e2e=1)+queue(kappa=30)`.

A shadow is a policy as in `--policy`, with its parameters in brackets, and `+queue(…)` for late
binding in front of it. What the queue does not name is as in the queue in force.
"""

from __future__ import annotations

import re
from typing import Any

MOST = 15
"""Shadows beside the policy in force."""

_CALL = re.compile(r"([a-z_]+)(?:\(([^()]*)\))?")
_NEED = "expected NAME or NAME(parameter=number,…), then +queue or +queue(…) for late binding"


def parse(text: str) -> list[dict[str, Any]]:
    """The gateway's form: one entry per shadow, in order; its name is its text without spaces.

    Raises:
        ValueError: not such a text, a name twice, or more than `MOST`.
    """
    names = [part for part in ("".join(piece.split()) for piece in text.split(";")) if part]
    if len(names) > MOST:
        raise ValueError(f"got {len(names)} policies, at most {MOST}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"got {twice[0]!r} twice")
    return [_shadow(name) for name in names]


def _shadow(name: str) -> dict[str, Any]:
    head, *tails = name.split("+")
    policy = _call(head, name)
    shadow: dict[str, Any] = {"name": name, "policy": {"name": policy[0], **policy[1]}}
    for tail in tails:
        word, parameters = _call(tail, name)
        if word != "queue" or "queue" in shadow:
            raise ValueError(f"got {name!r}, {_NEED}")
        shadow["queue"] = parameters
    return shadow


def _call(text: str, name: str) -> tuple[str, dict[str, Any]]:
    match = _CALL.fullmatch(text)
    if match is None:
        raise ValueError(f"got {name!r}, {_NEED}")
    pairs = [part.partition("=") for part in (match[2] or "").split(",") if part]
    try:
        return match[1], {key: _number(value) for key, _, value in pairs}
    except ValueError:
        raise ValueError(f"got {name!r}, {_NEED}") from None


def _number(text: str) -> float | int | bool:
    if text in ("true", "false"):
        return text == "true"
    value = float(text)
    return int(value) if value.is_integer() else value
