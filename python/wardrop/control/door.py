"""The audited door: the only way to change a running gateway, by hand or by the controller.

Each change is checked as a whole, applied all or nothing, and recorded with its number, the values
before it, its author and the reason. The outcome of a change refers to its number. The last changes
can be rolled back, the youngest first.
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


class RoutingTarget(Protocol):
    """The part of a gateway that a door changes."""

    def routing(self) -> str:
        """JSON of the policy and the queue in force."""
        ...

    def set_routing(self, change_json: str, /) -> str:
        """Change policy and queue, all or nothing; returns the JSON of `routing` afterwards."""
        ...


class RecordSink(Protocol):
    """Takes every record: an `AuditLog`, or a replay that collects records."""

    def write(self, record: Record, /) -> None:
        """Take one record."""
        ...


class Door:
    """Checks, applies and records changes of one gateway. Not thread-safe.

    Args:
        gateway: the gateway that is changed.
        log: takes every record; None keeps records in memory only.
        clock: seconds that records carry; Unix time by default.
    """

    def __init__(
        self,
        gateway: RoutingTarget,
        log: RecordSink | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._gateway = gateway
        self._log = log
        self._clock = clock
        self._number = 0
        self._history: deque[tuple[int, Routing]] = deque(maxlen=_MAX_HISTORY)
        self._records: deque[Record] = deque(maxlen=_MAX_RECORDS)
        self.on_change: Callable[[Record], None] | None = None
        """Called after every change that is not the controller's, and after roll-backs by hand."""

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
            by: author: `hand`, `controller` or `calibrator`.
            reason: why, in words; at most 500 characters are kept.
            evidence: why, in figures.

        Returns:
            The record of the change.

        Raises:
            SettingError: an unknown setting, a value out of range, or values that are in force.
        """
        before = self._routing()
        had = flat(before)
        after = self._apply(changed(before, changes))
        differing = _differing(had, after)
        if not differing:
            raise SettingError(f"{_names(changes)}: got the values in force; expected a change")
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
        """Undo the youngest change in force; with `number`, only if the youngest has this number.

        Raises:
            SettingError: there is no change in force, or a younger change than `number`.
        """
        if not self._history:
            raise SettingError("got a roll-back without a change in force; expected a change first")
        youngest, before = self._history[-1]
        if number is not None and number != youngest:
            raise SettingError(
                f"got change {number}, but change {youngest} is the youngest in force; "
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
        """Record an event of the settings `names`.

        Args:
            event: `change`, `kept`, `rolled_back`, `regime` or `price_guard`.
            names: names of the settings.
            before: values by name before the event; other names are ignored.
            after: values by name after the event; other names are ignored.
            reason: why, in words; at most 500 characters are kept.
            evidence: why, in figures.
            by: author: `hand`, `controller` or `calibrator`.
            of: number of the change whose outcome the event is; 0 for none.
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
            except OSError as error:  # the change stays in force; memory has the record
                log.error("cannot write the audit log: %s", error)
        return record

    @property
    def youngest_change(self) -> int | None:
        """Number of the youngest change in force, which a roll-back undoes; None without one."""
        return self._history[-1][0] if self._history else None

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
    """Sorted names whose values differ."""
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _names(changes: Mapping[str, Any]) -> str:
    return ", ".join(changes)
