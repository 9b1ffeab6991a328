"""Every change is a record: when, from, to, why, by whom, what came of it. JSON lines, bounded."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

CONTROLLER = "controller"
HAND = "hand"
CALIBRATOR = "calibrator"


@dataclass(frozen=True)
class Record:
    """One event in the life of a setting.

    Attributes:
        at_s: when, in seconds of the writer's clock; Unix time in a running gateway.
        event: `change`, `kept`, `rolled_back` or `regime`.
        setting: what was changed; several names with a comma between them.
        before: its value before; an object by name where there are several.
        after: its value after.
        reason: in words.
        evidence: in figures.
        by: `hand`, `controller` or `calibrator`.
        number: of this record, counted from 1; 0 where nobody counts.
        of: number of the change that this is the outcome of; 0 for none.
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
    """Appends records to a file that starts over at a limit, keeping one older file."""

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
    """The records of a log, oldest first; a torn last line is passed over.

    Raises:
        ValueError: a line inside the file is not a record.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            yield Record(**json.loads(line))
        except (json.JSONDecodeError, TypeError) as error:
            if number == len(lines):
                return
            raise ValueError(f"{path}, line {number}: not an audit record: {error}") from None


def outcomes(records: Iterable[Record]) -> dict[int, str]:
    """What came of each numbered change: `kept`, `rolled_back`, or nothing yet."""
    return {record.of: record.event for record in records if record.of}
