"""What the controller may move, and by which steps: bounded, and back to where the user put it.

| name | setting | when saturated |
|---|---|---|
| `kappa` | κ of the queue | up: the longer the line, the more short prompts may overtake |
| `room` | `backlog_s` of the queue, with `share_passes` | down to half: decide later |
| `objective` | `objective.ttft` of `toll` | up, where the user also wants something else |
| `admission` | `max_requests` of the queue | down, once the wait is beyond a bound |

Every move goes one step at a time and returns to the start when the fleet is not saturated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from wardrop.control.regime import Regime


@dataclass(frozen=True)
class State:
    """What a move depends on.

    Attributes:
        regime: where the fleet stands.
        waits: smoothed time to first token, or the prefill that waits per worker if that is more,
            over the fleet's own baseline.
        waiting: requests in the router's queue.
    """

    regime: Regime
    waits: float = 0.0
    waiting: int = 0


class Move(Protocol):
    """A setting's steps."""

    @property
    def start(self) -> float:
        """Where the user put it."""
        ...

    def next(self, value: float, state: State) -> float | None:
        """The next step from `value`; None to stay."""
        ...


@dataclass(frozen=True)
class Ladder:
    """The values that a setting may take, in steps, and where it should stand per regime."""

    values: tuple[float, ...]
    wanted: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(not 0 <= at < len(self.values) for at in self.wanted):
            raise ValueError(f"wanted {self.wanted}: expected positions in {self.values}")
        if list(self.values) != sorted(set(self.values)):
            raise ValueError(f"values: got {self.values}, expected rising ones")

    @property
    def start(self) -> float:
        """Where it stands below the knee."""
        return self.values[self.wanted[0]]

    def next(self, value: float, state: State) -> float | None:
        """The next step from `value` to where the regime wants it; None when it is there."""
        goal = self.values[self.wanted[state.regime]]
        if value == goal:
            return None
        steps = [
            v for v in self.values if (value < v <= goal if goal > value else goal <= v < value)
        ]
        return min(steps, key=lambda v: abs(v - value))


@dataclass(frozen=True)
class Admission:
    """How many may wait: fewer once the wait is hopeless, by at most half of those who wait now.

    Attributes:
        most: what the user allows.
        least: never fewer.
        shed_at: wait over the fleet's baseline beyond which new requests are refused.
    """

    most: float
    least: float = 16.0
    shed_at: float = 30.0

    @property
    def start(self) -> float:
        """What the user allows."""
        return self.most

    def next(self, value: float, state: State) -> float | None:
        """Down to as many as wait for `shed_at`; doubled when the fleet is not saturated."""
        if state.regime is not Regime.SATURATED:
            return min(self.most, 2 * value) if value < self.most else None
        if state.waits <= self.shed_at:
            return None
        fair = state.waiting * self.shed_at / state.waits
        target = float(math.ceil(max(self.least, fair, 0.5 * state.waiting)))
        return target if target < value else None


def _kappa(now: Mapping[str, Any]) -> Ladder | None:
    start = float(now["kappa"])
    above = tuple(step for step in (10.0, 20.0, 30.0) if step > start)
    return Ladder((start, *above), (0, 0, len(above))) if above else None


def _room(now: Mapping[str, Any]) -> Ladder | None:
    start = float(now["backlog_s"])
    half = max(0.01, 0.5 * start)
    return Ladder((half, start), (1, 1, 0)) if half < start else None


def _objective(now: Mapping[str, Any]) -> Ladder | None:
    others = sum(float(now[f"objective.{name}"]) for name in ("itl", "e2e", "goodput"))
    start = float(now["objective.ttft"])
    steps = tuple(start + share * others for share in (0.0, 1.0, 3.0))
    return Ladder(steps, (0, 0, 2)) if others > 0 and steps[-1] <= 100 else None


def _admission(now: Mapping[str, Any]) -> Admission | None:
    most = float(now["max_requests"])
    return Admission(most) if most > Admission.least else None


MOVES: dict[str, tuple[str, Callable[[Mapping[str, Any]], Move | None]]] = {
    "kappa": ("kappa", _kappa),
    "room": ("backlog_s", _room),
    "objective": ("objective.ttft", _objective),
    "admission": ("max_requests", _admission),
}
"""Name → its setting, and the move from the settings in force."""

DEFAULT_MOVES = ("kappa", "room")
"""What moves unless the user says otherwise."""


def moves_of(names: Iterable[str], now: Mapping[str, Any]) -> dict[str, Move]:
    """Setting → move of each name that has something to move under the settings in force.

    Args:
        names: of `MOVES`.
        now: every setting, as `Door.settings` tells; the room counts only with `share_passes`,
            without which a worker has room while no prompt is in flight on it.
    """
    found: dict[str, Move] = {}
    for name in names:
        setting, make = MOVES[name]
        if setting not in now or (name == "room" and not now.get("share_passes")):
            continue
        move = make(now)
        if move is not None:
            found[setting] = move
    return found
