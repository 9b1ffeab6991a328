"""The Azure LLM inference traces of 2023: CSV without block ids, so prompts share nothing.

Columns: `TIMESTAMP,ContextTokens,GeneratedTokens`. Source: Patel et al., Splitwise (ISCA '24).
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from datetime import UTC, datetime

from wardrop.traces.rows import TraceError, TraceFile, TraceRow

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_MICROSECOND_TEXT = 26
"""Length of a timestamp with six decimals; the files have seven, `datetime` takes six."""


def parse_azure(name: str, lines: Iterable[str], limit: int | None) -> TraceFile:
    """The rows of an Azure trace, by arrival; at most `limit` of them, in file order.

    Raises:
        TraceError: a column is missing, or a row is not a time and two whole numbers.
    """
    reader = csv.DictReader(lines)
    if not set(_COLUMNS) <= set(reader.fieldnames or ()):
        raise TraceError(
            f"{name}:1: got the columns {', '.join(reader.fieldnames or ('none',))}; expected "
            f"{', '.join(_COLUMNS)}"
        )
    rows: list[TraceRow] = []
    for row in reader:
        if limit is not None and len(rows) >= limit:
            break
        try:
            at = datetime.fromisoformat(row["TIMESTAMP"][:_MICROSECOND_TEXT])
            tokens, output = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (TypeError, ValueError) as error:
            raise TraceError(
                f"{name}:{reader.line_num}: {error}; expected a time and two whole numbers"
            ) from error
        at_ms = at.replace(tzinfo=UTC).timestamp() * 1e3
        rows.append(TraceRow(at_ms, max(tokens, 1), max(output, 1)))
    rows.sort(key=lambda row: row.timestamp_ms or 0.0)
    return TraceFile(name, tuple(rows))
