"""Every change is a record: when, from, to, why, what came of it. JSON lines, bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One event in the life of a setting.

    Attributes:
        at_s: when, in the controller's seconds.
        event: `change`, `kept`, `rolled_back`, `regime` or `by_hand`.
        setting: what was changed.
        before: its value before.
        after: its value after.
        reason: in words.
        evidence: in figures.
    """

    at_s: float
    event: str
    setting: str
    before: Any
    after: Any
    reason: str
    evidence: dict[str, float] = field(default_factory=dict[str, float])

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
