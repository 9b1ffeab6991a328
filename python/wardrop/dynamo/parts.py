"""The parts of the control plane: each isolated, restarted with growing pauses, and reported.

A part is a coroutine beside the data path: discovery, repair, control, saved state, the admin API.
Every failure of a part is logged and counted, and the part starts again. No exception of a
part ends another part or the router: the gateway serves with the last known fleet. The states are
in the answer of `/health` and in the metrics `wardrop_control_part_up`,
`wardrop_control_part_failures_total` and `wardrop_control_part_answered_timestamp_seconds`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from wardrop.dynamo.backoff import Backoff

log = logging.getLogger("wardrop.control")

_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 30.0
_STABLE_S = 60.0
"""A part that ran so long starts again with the first pause."""
_MAX_ERROR_CHARACTERS = 300


class PartsGateway(Protocol):
    """The method of `wardrop._core.Gateway` that shows the states of the parts."""

    def set_parts(self, parts_json: str, /) -> object:
        """Show the states of the parts in `/health` and in the metrics."""
        ...


@dataclass
class Part:
    """The state of one part.

    Attributes:
        up: Whether the part runs now, or has ended as it should.
        failures: Failures since the start; never falls.
        error: Text of the last failure; empty before the first.
        answered_unix_s: Up to when the part's source is known to have answered, in whole seconds
            since 1970; None for a part without a source.
    """

    up: bool = True
    failures: int = 0
    error: str = ""
    answered_unix_s: float | None = None


class Parts:
    """Runs parts and restarts them.

    Args:
        gateway: The gateway that shows the states.
    """

    def __init__(self, gateway: PartsGateway) -> None:
        self.states: dict[str, Part] = {}
        self._gateway = gateway

    async def keep(self, name: str, run: Callable[[], Awaitable[object]]) -> None:
        """Run a part until it ends by itself or is cancelled; start it again after each failure.

        Args:
            name: Name of the part in logs, `/health` and metrics.
            run: Starts the part.
        """
        part = self.states.setdefault(name, Part())
        backoff = Backoff(_FIRST_BACKOFF_S, _MAX_BACKOFF_S)
        while True:
            started_s = time.monotonic()
            # A part that reports its own state, such as the watch over discovery, sets it itself.
            self._set(part, up=True)
            try:
                await run()
            except Exception as error:
                if time.monotonic() - started_s >= _STABLE_S:
                    backoff.reset()
                pause_s = backoff.next_s()
                self._fail(part, error)
                log.error(
                    "%s failed and starts again in %.2f s: %s", name, pause_s, part.error,
                    exc_info=log.isEnabledFor(logging.DEBUG),
                )  # fmt: skip
                await asyncio.sleep(pause_s)
            else:
                self._set(part, up=True)
                return

    def attempt(self, name: str, run: Callable[[], object]) -> None:
        """Run a step once. A failure is logged and reported, and nothing else happens.

        Args:
            name: Name of the part that the step belongs to.
            run: The step.
        """
        part = self.states.setdefault(name, Part())
        try:
            run()
        except Exception as error:
            self._fail(part, error)
            log.error("%s failed: %s", name, part.error)

    def report(self, name: str, error: str | None, answered_unix_s: float | None = None) -> None:
        """Set the state of a part that handles its failures itself, such as a discovery backend.

        Args:
            name: Name of the part.
            error: Why the part does not work now; None when it does.
            answered_unix_s: Up to when the part's source is known to have answered.
        """
        part = self.states.setdefault(name, Part())
        if error is not None and (part.up or part.error != error):
            part.failures += 1
            part.error = error[:_MAX_ERROR_CHARACTERS]
        # Whole seconds, so that a busy source does not make a state per answer.
        part.answered_unix_s = None if answered_unix_s is None else float(int(answered_unix_s))
        self._set(part, up=error is None)

    def _fail(self, part: Part, error: Exception) -> None:
        part.failures += 1
        part.error = f"{type(error).__name__}: {error}"[:_MAX_ERROR_CHARACTERS]
        self._set(part, up=False)

    def _set(self, part: Part, up: bool) -> None:
        part.up = up
        states = {
            name: {"up": state.up, "failures": state.failures, "error": state.error}
            | ({} if state.answered_unix_s is None else {"answered_unix_s": state.answered_unix_s})
            for name, state in self.states.items()
        }
        try:
            self._gateway.set_parts(json.dumps(states))
        except Exception as error:
            log.error("the states of the parts are not shown: %s", error)
