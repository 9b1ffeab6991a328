"""The result of one check, and the forms in which a run is printed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import msgspec

SCHEMA = "wardrop.doctor.v1"

Level = Literal["ok", "skipped", "warning", "failure"]
_MARKS = {"ok": "ok", "skipped": "skip", "warning": "WARN", "failure": "FAIL"}


class Finding(msgspec.Struct):
    """What one check found.

    Attributes:
        check: Name of the check; the documentation explains it under this name.
        level: `ok`, `skipped`, `warning` or `failure`.
        text: What was found: received and expected.
        advice: What to do; empty for a check that is well.
    """

    check: str
    level: Level
    text: str
    advice: str = ""


def exit_code(findings: Sequence[Finding], strict: bool) -> int:
    """0 without a failure, else 1. With `strict` a warning counts as a failure."""
    bad = {"failure", "warning"} if strict else {"failure"}
    return int(any(finding.level in bad for finding in findings))


def as_text(findings: Sequence[Finding]) -> str:
    """One line per finding, its advice below, and a line that counts the levels."""
    width = max((len(finding.check) for finding in findings), default=0)
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.level]:<4}  {finding.check:<{width}}  {finding.text}")
        if finding.advice:
            lines.append(f"{'':<4}  {'':<{width}}  → {finding.advice}")
    counts = Counter(finding.level for finding in findings)
    lines.append(
        f"{counts['ok']} ok, {counts['warning']} warnings, {counts['failure']} failures, "
        f"{counts['skipped']} skipped"
    )
    return "\n".join(lines)


def as_json(findings: Sequence[Finding], strict: bool) -> str:
    """The run as one JSON object."""
    run = {
        "schema": SCHEMA,
        "passed": exit_code(findings, strict) == 0,
        "findings": [msgspec.structs.asdict(finding) for finding in findings],
    }
    return msgspec.json.format(msgspec.json.encode(run), indent=1).decode()
