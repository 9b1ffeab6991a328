"""Settings that may change while a gateway runs: names, units and bounds.

A setting has one name everywhere: in `wardrop set`, in the admin API, in the audit and in the
controller. The gateway itself checks policies and their parameters. The bounds here are tighter
where a mistyped value would do harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, cast

from wardrop.calls import CallError, parse_call
from wardrop.errors import InputError

Routing = dict[str, Any]
"""`{"policy": {"name": …, …}, "queue": {…} | None}`, as the gateway reports it."""


class SettingError(InputError):
    """An unknown setting or a value out of range. The text names received and expected."""


@dataclass(frozen=True)
class Bound:
    """The range of a setting that is a number.

    Attributes:
        low: smallest value.
        high: largest value.
        unit: unit of the value.
        says: what the setting does, in words.
        whole: whether the value is a whole number.
    """

    low: float
    high: float
    unit: str
    says: str
    whole: bool = False


QUEUE = {
    "kappa": Bound(0, 100, "s/s", "how far a short prompt may overtake: κ · prefill seconds"),
    "patience": Bound(
        0, 1000, "s/s", "bound of κ · s: times the recent time of a request; 0: none"
    ),
    "backlog_s": Bound(0.01, 60, "s", "room: prefill seconds that may wait at a worker"),
    "max_requests": Bound(1, 1 << 20, "requests", "most waiting requests; 429 above", True),
    "max_wait_s": Bound(0.1, 3600, "s", "longest wait, after which a request is placed"),
}
"""Settings of the queue; they exist while the queue is on."""

SWITCHES = {"share_passes": "place together the prompts that fit one engine pass"}
"""Settings of the queue that are on or off."""

OBJECTIVE = {
    "objective.ttft": Bound(0, 100, "weight", "time to first token"),
    "objective.itl": Bound(0, 100, "weight", "time between tokens"),
    "objective.e2e": Bound(0, 100, "weight", "time to the last token"),
    "objective.goodput": Bound(0, 100, "weight", "share of requests within both limits"),
    "objective.ttft_slo_s": Bound(0.001, 3600, "s", "limit of the time to first token"),
    "objective.itl_slo_s": Bound(0.0001, 60, "s", "limit of the time between tokens"),
}
"""Settings of the policy `toll`."""


def flat(routing: Routing) -> dict[str, Any]:
    """Every setting with its value: `policy`, `queue`, and the settings that exist under both."""
    policy = cast(dict[str, Any], routing["policy"])
    queue = cast(dict[str, Any] | None, routing["queue"])
    is_toll = policy["name"] == "toll"
    name = "toll" if is_toll else policy_text(policy)
    found: dict[str, Any] = {"policy": name, "queue": queue is not None}
    if queue is not None:
        found |= {name: queue[name] for name in (*QUEUE, *SWITCHES)}
    if is_toll:
        found |= {name: policy[name.partition(".")[2]] for name in OBJECTIVE}
    return found


def changed(routing: Routing, changes: Mapping[str, Any]) -> Routing:
    """The routing with changes, as `Gateway.set_routing` takes it.

    Raises:
        SettingError: an unknown name, a value out of range, or a setting of a part that is off.
    """
    if not changes:
        raise SettingError("got no change, expected at least one SETTING=VALUE")
    policy: dict[str, Any] = dict(routing["policy"])
    queue: dict[str, Any] | None = routing["queue"]
    rest = dict(changes)
    if "policy" in rest:
        policy = parse_policy(rest.pop("policy"))
    if "queue" in rest:
        queue = (queue or {}) if _on("queue", rest.pop("queue")) else None
    queue = dict(queue) if queue is not None else None
    for name, value in rest.items():
        if name in QUEUE or name in SWITCHES:
            if queue is None:
                raise SettingError(
                    f"{name}: got a value without a queue, expected queue=true with it"
                )
            queue[name] = _checked(name, value, QUEUE[name]) if name in QUEUE else _on(name, value)
        elif name in OBJECTIVE:
            if policy["name"] != "toll":
                raise SettingError(
                    f"{name}: got a value under {policy['name']}, expected policy=toll with it"
                )
            policy[name.partition(".")[2]] = _checked(name, value, OBJECTIVE[name])
        else:
            known = ["policy", "queue", *QUEUE, *SWITCHES, *OBJECTIVE]
            near = get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise SettingError(f"got the unknown setting {name!r}; {hint}")
    return {"policy": policy, "queue": queue}


def parse_policy(text: object) -> dict[str, Any]:
    """`"dynamo(prefill_load_scale=4)"` → `{"name": "dynamo", "prefill_load_scale": 4.0}`.

    Raises:
        SettingError: the text is no policy with numbers as parameters; see `wardrop.calls`.
    """
    if not isinstance(text, str):
        raise SettingError(f"policy: got {text!r}, expected NAME or NAME(parameter=number,…)")
    try:
        call = parse_call(text)
        numbers = call.numbers()
    except CallError as error:
        raise SettingError(f"policy: {error}") from None
    return {"name": call.name, **{name: float(value) for name, value in numbers.items()}}


def policy_text(policy: Mapping[str, Any]) -> str:
    """The policy as `parse_policy` reads it."""
    parameters = ",".join(
        f"{name}={value:g}" for name, value in policy.items() if isinstance(value, int | float)
    )
    return f"{policy['name']}({parameters})" if parameters else str(policy["name"])


def _on(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise SettingError(f"{name}: got {value!r}, expected true or false")
    return value


def _checked(name: str, value: object, bound: Bound) -> float | int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(f"{name}: got {value!r}, expected a number ({bound.unit})")
    if not bound.low <= value <= bound.high:  # also catches NaN
        raise SettingError(
            f"{name}: got {value:g}, expected {bound.low:g} to {bound.high:g} {bound.unit}"
        )
    if bound.whole and value != int(value):
        raise SettingError(f"{name}: got {value:g}, expected a whole number")
    return int(value) if bound.whole else float(value)
