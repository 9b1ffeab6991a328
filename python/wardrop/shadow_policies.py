"""Shadow policies as the text of a flag: `dynamo;sticky;toll(e2e=1)+queue(kappa=30)`.

Each part between semicolons is one shadow: a policy as in `--policy`, and `+queue(…)` for late
binding in front of it. Settings of the queue that a shadow does not name are those of the
gateway's own queue.
"""

from __future__ import annotations

from typing import Any

from wardrop.calls import CallError, Value, parse_call, split_outside

MAX_SHADOWS = 15
"""Most shadows beside the policy in force."""


def parse(text: str) -> list[dict[str, Any]]:
    """The gateway's form: one entry per shadow, in order; its name is its text without spaces.

    Raises:
        CallError: a part does not follow the grammar, a shadow appears twice, or there are more
            than `MAX_SHADOWS`.
    """
    names = ["".join(part.split()) for part in split_outside(text, ";")]
    if len(names) > MAX_SHADOWS:
        raise CallError(f"got {len(names)} policies, expected at most {MAX_SHADOWS}")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise CallError(f"got {repeated[0]!r} twice, expected every policy once")
    return [_shadow(name) for name in names]


def _shadow(name: str) -> dict[str, Any]:
    head, *tails = split_outside(name, "+") or [""]
    policy = parse_call(head)
    shadow: dict[str, Any] = {
        "name": name,
        "policy": {"name": policy.name, **_numbers(policy.parameters, name)},
    }
    for tail in tails:
        added = parse_call(tail)
        if added.name != "queue" or "queue" in shadow:
            raise CallError(f"got {tail!r} in {name!r}, expected +queue or +queue(…) at most once")
        shadow["queue"] = _numbers(added.parameters, name)
    return shadow


def _numbers(parameters: dict[str, Value], name: str) -> dict[str, bool | int | float]:
    """The parameters as the gateway reads them: whole numbers as integers."""
    found: dict[str, bool | int | float] = {}
    for key, value in parameters.items():
        if not isinstance(value, bool | int | float):
            raise CallError(f"got {key}={value!r} in {name!r}, expected a number, true or false")
        is_whole = isinstance(value, float) and value.is_integer()
        found[key] = int(value) if is_whole else value
    return found
