"""The audit log: one record for every change of a setting and its outcome, as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CONTROLLER = "controller"
HAND = "hand"
CALIBRATOR = "calibrator"
PRICE_GUARD = "price guard"


@dataclass(frozen=True)
class Record:
    """One event in the life of a setting.

    Attributes:
        at_s: time in seconds of the writer's clock; Unix time in a running gateway.
        event: `change`, `kept`, `rolled_back`, `regime` or `price_guard`.
        setting: name of the setting; several names with a comma between them.
        before: value before the event; an object by name where there are several settings.
        after: value after the event, in the same form.
        reason: why, in words.
        evidence: why, in figures.
        by: author of the event: `hand`, `controller`, `calibrator` or `price guard`.
        number: number of this record, counted from 1; 0 where records are not numbered.
        of: number of the change whose outcome this record is; 0 for none.
    """

    at_s: float
    event: str
    setting: str
    before: Any
    after: Any
    reason: str
    evidence: dict[str, float] = field(default_factory=dict[str, float])
    by: str = CONTROLLER
    number: int = 0
    of: int = 0

    def line(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(asdict(self), sort_keys=True)


class AuditLog:
    """Appends records to a file; at a size limit the file becomes `FILE.1` and a new one begins.

    Args:
        path: the file.
        limit_bytes: size at which a new file begins.
    """

    def __init__(self, path: Path, limit_bytes: int = 16 << 20) -> None:
        self.path = path
        self.limit_bytes = limit_bytes

    def write(self, record: Record) -> None:
        """Append one record."""
        if self.path.exists() and self.path.stat().st_size >= self.limit_bytes:
            self.path.replace(self.path.with_suffix(self.path.suffix + ".1"))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(record.line() + "\n")


def read_audit(path: Path) -> Iterator[Record]:
    """The records of a log, oldest first; an incomplete last line after a record is skipped.

    Raises:
        ValueError: a line inside the file is not a record.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield Record(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            if number == len(lines) > 1:
                return
            raise ValueError(f"{path}, line {number}: not an audit record: {error}") from None


def outcomes(records: Iterable[Record]) -> dict[int, str]:
    """Outcome by number of the change: `kept` or `rolled_back`; a change on trial has none."""
    return {record.of: record.event for record in records if record.of}
