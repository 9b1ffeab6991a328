"""A replay with the controller of `wardrop.control` in it: the very same one as in a gateway.

Every 250 ms of simulated time it looks at what the simulated fleet's routers and queues tell (the
same fields as a gateway's), steps once, and what it decides goes through the same audited door.
Nothing of it reads a clock, so equal arguments give an equal run.

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
"""Simulated seconds between two looks, as in a gateway."""

_PARAMETERS = ("acts", "moves", "period_ms")


class ControlledRun:
    """One cell that stops for looks and changes.

    Args:
        workload: what comes in.
        fleet: what serves it.
        routers: the simulator's form of policy and queue, one per pool.
        seed: of ties, samples and losses.
        parameters: of the controller: `acts` (false: it only tells the regime), `moves` (names of
            `wardrop.control.moves.MOVES` with `|` between), `period_ms`.
        on_sample: told each sample that the controller sees.
        settings: of the controller, instead of those that `moves` stands for.

    Attributes:
        door: by which the fleet is changed.
        loop: who looks and decides.
        audit: every record, oldest first.

    Raises:
        ReplayError: an unknown parameter, or one out of range.
        ValueError: as from `wardrop.replay.simulate`.
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
        self._looks = 0
        self._now_s = 0.0
        self._on_sample = on_sample
        self._native = WatchedFleet(workload.native, fleet.to_json(seed), routers)
        self.door = Door(self._native, self, clock=self._clock)
        acts = bool(parameters.get("acts", True))
        self.loop = ControlLoop(
            self, self.door, acts, settings=settings, moves=names, clock=self._clock
        )

    def advance(self, until_s: float = math.inf) -> bool:
        """Let simulated time pass, looking and acting; False when nothing is left to happen."""
        while self._now_s < until_s:
            self._looks += 1
            self._now_s = self._looks * self._period_s
            if not self._native.advance(self._now_s):
                return False
            told: dict[str, Any] = json.loads(self._native.sample())
            sample = self.loop.take(self._now_s, told)
            if sample is not None and self._on_sample is not None:
                self._on_sample(self._now_s, sample)
        return True

    def finish(self) -> dict[str, Any]:
        """What the run left behind, as `simulate_fleet` has it; once."""
        return self._native.finish()

    def write(self, record: Record) -> None:
        """The door's log: every record is kept."""
        self.audit.append(record)

    def sample(self) -> str:
        """One look, as JSON."""
        return self._native.sample()

    def set_gauges(self, gauges_json: str, /) -> None:
        """Nobody reads a simulated metrics page."""

    def _clock(self) -> float:
        return self._now_s
