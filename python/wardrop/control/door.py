"""The one door by which a running gateway is changed, by hand or by the controller.

Each change is checked as a whole, applied all or nothing, and recorded with its number, what it
was before, who made it and why; what came of it is recorded under the same number. The last
changes can be rolled back, the youngest first.
"""

from __future__ import annotations

import json
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from wardrop.control.audit import CONTROLLER, HAND, Record
from wardrop.control.settings import Routing, SettingError, changed, flat

log = logging.getLogger("wardrop.control")

_MAX_HISTORY = 256
_MAX_RECORDS = 1024
_MAX_REASON = 500


class Routed(Protocol):
    """The part of a gateway that a door changes."""

    def routing(self) -> str:
        """JSON of policy and queue in force."""
        ...

    def set_routing(self, change_json: str, /) -> str:
        """Change them, all or nothing."""
        ...


class Keeps(Protocol):
    """Where records go besides memory: an `AuditLog`, or whoever wants each of them."""

    def write(self, record: Record, /) -> None:
        """Keep one record."""
        ...


class Door:
    """See the module. Not for several threads at once.

    Args:
        gateway: what is changed.
        log: where records go besides memory; None for nowhere.
        clock: Unix time.
    """

    def __init__(
        self,
        gateway: Routed,
        log: Keeps | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gateway = gateway
        self._log = log
        self._clock = clock
        self._number = 0
        self._history: deque[tuple[int, Routing]] = deque(maxlen=_MAX_HISTORY)
        self._records: deque[Record] = deque(maxlen=_MAX_RECORDS)
        self.on_change: Callable[[Record], None] | None = None
        """Told of changes but the controller's own, and of roll-backs by hand, once in force."""

    def settings(self) -> dict[str, Any]:
        """Every setting with its value."""
        return flat(self._routing())

    def change(
        self,
        changes: Mapping[str, Any],
        by: str,
        reason: str,
        evidence: Mapping[str, float] | None = None,
    ) -> Record:
        """Put settings in force.

        Args:
            changes: setting → value.
            by: `hand`, `controller` or `calibrator`.
            reason: in words, at most 500 characters are kept.
            evidence: in figures.

        Returns:
            The record of the change.

        Raises:
            SettingError: an unknown setting, a value out of range, or nothing that would change.
        """
        before = self._routing()
        had = flat(before)
        after = self._apply(changed(before, changes))
        differing = _differing(had, after)
        if not differing:
            raise SettingError(f"{_names(changes)}: that is already in force")
        shown = [name for name in differing if name in changes] or differing
        record = self.note("change", shown, had, after, reason, evidence, by)
        self._history.append((record.number, before))
        if by != CONTROLLER and self.on_change is not None:
            self.on_change(record)
        return record

    def roll_back(
        self,
        by: str,
        reason: str,
        evidence: Mapping[str, float] | None = None,
        number: int | None = None,
    ) -> Record:
        """Undo the youngest change that stands, or the one with `number` if it is the youngest.

        Raises:
            SettingError: there is none, or a younger one stands on it.
        """
        if not self._history:
            raise SettingError("there is no change to roll back")
        youngest, before = self._history[-1]
        if number is not None and number != youngest:
            raise SettingError(
                f"got change {number}, but {youngest} is the youngest that stands; "
                "roll back in order"
            )
        had = self.settings()
        after = self._apply(before)
        self._history.pop()
        shown = _differing(had, after)
        record = self.note("rolled_back", shown, had, after, reason, evidence, by, youngest)
        if by == HAND and self.on_change is not None:
            self.on_change(record)
        return record

    def note(
        self,
        event: str,
        names: Sequence[str],
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        reason: str,
        evidence: Mapping[str, float] | None = None,
        by: str = "controller",
        of: int = 0,
    ) -> Record:
        """Record what happened to the settings `names`, or what is no change of its own.

        Args:
            event: `change`, `kept`, `rolled_back` or `regime`.
            names: what it concerns.
            before: values of these, perhaps among others.
            after: the same, afterwards.
            reason: in words.
            evidence: in figures.
            by: `hand` or `controller`.
            of: number of the change that this came of.
        """
        self._number += 1
        single = len(names) == 1
        record = Record(
            self._clock(),
            event,
            ", ".join(names),
            before.get(names[0]) if single else {name: before.get(name) for name in names},
            after.get(names[0]) if single else {name: after.get(name) for name in names},
            reason[:_MAX_REASON],
            dict(evidence or {}),
            by,
            self._number,
            of,
        )
        self._records.append(record)
        log.info(
            "%s %d by %s: %s: %s → %s%s",
            event,
            record.number,
            by,
            record.setting,
            record.before,
            record.after,
            f" ({record.reason})" if record.reason else "",
        )
        if self._log is not None:
            try:
                self._log.write(record)
            except OSError as error:  # the change stands; the log in memory has it
                log.error("the audit log can not be written: %s", error)
        return record

    def records(self, last: int = 50) -> list[Record]:
        """The last records, oldest first."""
        return list(self._records)[-last:]

    def _routing(self) -> Routing:
        return json.loads(self._gateway.routing())

    def _apply(self, routing: Routing) -> dict[str, Any]:
        try:
            return flat(json.loads(self._gateway.set_routing(json.dumps(routing))))
        except SettingError:
            raise
        except ValueError as error:  # the gateway's own text names the parameter
            raise SettingError(str(error)) from error


def _differing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Names whose values are not the same, sorted."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _names(changes: Mapping[str, Any]) -> str:
    return ", ".join(changes)
