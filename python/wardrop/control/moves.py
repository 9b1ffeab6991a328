"""Moves: the settings that the controller may change, and the bounded steps of each.

| name | setting | when saturated |
|---|---|---|
| `kappa` | κ of the queue | up: in a long queue, short prompts may overtake further |
| `room` | `backlog_s` of the queue, with `share_passes` | down to half: decide later |
| `objective` | `objective.ttft` of `toll` | up, where the objective has other parts too |
| `admission` | `max_requests` of the queue | down, once the wait exceeds a bound |

Every move goes one step at a time, and back to the value that the user set once the fleet is no
longer saturated.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from wardrop.control.regime import Regime


@dataclass(frozen=True)
class State:
    """The state of the fleet on which a move depends.

    Attributes:
        regime: regime of the fleet.
        waits: smoothed time to first token over the baseline of the fleet; or, if larger, the
            waiting prefill per worker over that baseline.
        waiting: requests in the router's queue.
    """

    regime: Regime
    waits: float = 0.0
    waiting: int = 0


class Move(Protocol):
    """The steps of one setting."""

    @property
    def start(self) -> float:
        """The value that the user set."""
        ...

    def next(self, value: float, state: State) -> float | None:
        """The next step from `value`; None to stay."""
        ...


@dataclass(frozen=True)
class Ladder:
    """A setting with fixed steps.

    Attributes:
        values: values of the setting, rising.
        wanted: per regime, the position in `values` that the setting moves to.

    Raises:
        ValueError: values do not rise, or a position is outside of them.
    """

    values: tuple[float, ...]
    wanted: tuple[int, int, int]

    def __post_init__(self) -> None:
        if any(not 0 <= at < len(self.values) for at in self.wanted):
            raise ValueError(f"wanted {self.wanted}: expected positions in {self.values}")
        if list(self.values) != sorted(set(self.values)):
            raise ValueError(f"values: got {self.values}, expected rising values")

    @property
    def start(self) -> float:
        """The value below the knee."""
        return self.values[self.wanted[0]]

    def next(self, value: float, state: State) -> float | None:
        """The next step from `value` towards the value for the regime; None if there already."""
        goal = self.values[self.wanted[state.regime]]
        if value == goal:
            return None
        steps = [
            v for v in self.values if (value < v <= goal if goal > value else goal <= v < value)
        ]
        return min(steps, key=lambda v: abs(v - value))


@dataclass(frozen=True)
class Admission:
    """The most requests that may wait in the queue; it falls once the wait exceeds a bound.

    A step never falls below half of the requests that wait now.

    Attributes:
        most: the limit that the user set.
        least: lower bound of the limit.
        shed_at: wait, as a multiple of the baseline, from which new requests are refused.
    """

    most: float
    least: float = 16.0
    shed_at: float = 30.0

    @property
    def start(self) -> float:
        """The limit that the user set."""
        return self.most

    def next(self, value: float, state: State) -> float | None:
        """Down to the length whose wait is `shed_at`; doubled if the fleet is not saturated."""
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
"""By name: the setting, and a function that makes the move from the settings in force."""

DEFAULT_MOVES = ("kappa", "room")
"""Names of the moves that are on by default."""


def moves_of(names: Iterable[str], now: Mapping[str, Any]) -> dict[str, Move]:
    """The moves that exist under the settings in force, by setting.

    Args:
        names: names of `MOVES`.
        now: every setting with its value, as from `Door.settings`. `room` needs `share_passes`:
            without it a worker has room exactly while no prompt is in flight on it.
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
