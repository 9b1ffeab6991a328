"""Replay with a controller: the controller of `wardrop.control`, unchanged, in a simulation.

Every 250 ms of simulated time the loop polls the routers and queues of the simulated fleet, which
report the same fields as a gateway. The controller takes one step, and its action goes through the
same audited door. No part reads a clock, so equal arguments give an equal run.

    run = ControlledRun(workload, fleet, Policy.parse("toll+queue+controller"))
    run.advance(60.0)
    run.door.change({"kappa": 20}, "hand", "a plan")     # as `wardrop set` would
    run.advance()
    raw, run.audit
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from wardrop._core import WatchedFleet
from wardrop.control.audit import Record
from wardrop.control.controller import Settings
from wardrop.control.door import Door
from wardrop.control.loop import ControlLoop
from wardrop.control.moves import DEFAULT_MOVES, MOVES
from wardrop.control.sample import Sample
from wardrop.replay.fleet import Fleet
from wardrop.replay.workload import ReplayError, Workload

PERIOD_S = 0.25
"""Simulated seconds between two polls, as in a gateway."""

_PARAMETERS = ("acts", "moves", "period_ms")


class ControlledRun:
    """One simulation that stops for polls and changes.

    Args:
        workload: the requests.
        fleet: the simulated fleet.
        routers: JSON of policy and queue for the simulator, one per pool.
        seed: seed of ties, samples and losses.
        parameters: parameters of the controller: `acts` (false: it only reports the regime),
            `moves` (names of `wardrop.control.moves.MOVES` with `|` between), `period_ms`.
        on_sample: called with the time and each sample that the controller sees.
        settings: settings of the controller; by default those with the named moves.

    Attributes:
        door: the way by which settings of the fleet change.
        loop: feeds samples to the controller.
        audit: every record, oldest first.

    Raises:
        ReplayError: an unknown parameter, or one out of range.
        ValueError: a field of the fleet or the policy is out of range or unknown.
    """

    def __init__(
        self,
        workload: Workload,
        fleet: Fleet,
        routers: str,
        seed: int,
        parameters: dict[str, Any],
        on_sample: Callable[[float, Sample], None] | None = None,
        settings: Settings | None = None,
    ) -> None:
        unknown = set(parameters) - set(_PARAMETERS)
        if unknown:
            raise ReplayError(
                f"controller: got {', '.join(sorted(unknown))}; expected {', '.join(_PARAMETERS)}"
            )
        moves = str(parameters.get("moves", "|".join(DEFAULT_MOVES)))
        names = tuple(filter(None, moves.split("|")))
        strange = set(names) - set(MOVES)
        if strange:
            raise ReplayError(
                f"controller: got moves {', '.join(sorted(strange))}; expected {', '.join(MOVES)}"
            )
        period_ms = parameters.get("period_ms", 1e3 * PERIOD_S)
        if isinstance(period_ms, str) or not 1 <= period_ms <= 60_000:
            raise ReplayError(f"controller: got period_ms={period_ms}; expected 1 to 60,000")
        self.audit: list[Record] = []
        self._period_s = float(period_ms) / 1e3
        self._polls = 0
        self._now_s = 0.0
        self._on_sample = on_sample
        self._native = WatchedFleet(workload.native, fleet.to_json(seed), routers)
        self.door = Door(self._native, self, clock=self._clock)
        acts = bool(parameters.get("acts", True))
        self.loop = ControlLoop(
            self, self.door, acts, settings=settings, moves=names, clock=self._clock
        )

    def advance(self, until_s: float = math.inf) -> bool:
        """Let simulated time pass, polling and acting; False once no event is left."""
        while self._now_s < until_s:
            self._polls += 1
            self._now_s = self._polls * self._period_s
            if not self._native.advance(self._now_s):
                return False
            polled: dict[str, Any] = json.loads(self._native.sample())
            sample = self.loop.take(self._now_s, polled)
            if sample is not None and self._on_sample is not None:
                self._on_sample(self._now_s, sample)
        return True

    def finish(self) -> dict[str, Any]:
        """The raw arrays of the run, as from `simulate_fleet`; may be called once."""
        return self._native.finish()

    def write(self, record: Record) -> None:
        """Take one record of the door; every record is kept."""
        self.audit.append(record)

    def sample(self) -> str:
        """One poll, as JSON."""
        return self._native.sample()

    def set_figures(self, figures_json: str, /) -> None:
        """Ignore gauges: a simulation has no metrics page."""

    def _clock(self) -> float:
        return self._now_s
