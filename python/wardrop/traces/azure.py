"""The Azure LLM inference traces of 2023: CSV without block ids, so prompts share nothing.

Columns: `TIMESTAMP,ContextTokens,GeneratedTokens`. A time without a zone is UTC, regardless of the
zone of this machine. Source: Patel et al., Splitwise (ISCA '24).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from wardrop.traces.fields import Line, whole
from wardrop.traces.rows import TraceError, TraceFile, TraceRow

_COLUMNS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME = re.compile(
    r"(?P<date>\d{4}-\d\d-\d\d)[ T](?P<time>\d\d:\d\d(?::\d\d)?)(?:[.,](?P<fraction>\d{1,12}))?"
    r"\s*(?P<zone>Z|UTC|[+-]\d\d(?::?\d\d)?)?"
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_azure(name: str, lines: Iterable[Line], limit: int | None) -> TraceFile:
    """The rows of an Azure trace, by arrival; at most `limit` of them, in file order.

    Raises:
        TraceError: a column is missing, or a row is not a time and two whole numbers.
    """
    columns: list[str] | None = None
    rows: list[TraceRow] = []
    for line in lines:
        if limit is not None and len(rows) >= limit:
            break
        cells = _cells(line)
        if columns is None:
            columns = cells
            if not set(_COLUMNS) <= set(columns):
                raise TraceError(
                    f"{line.place}: got the columns {', '.join(columns)}; expected "
                    f"{', '.join(_COLUMNS)}"
                )
            continue
        rows.append(_row(line, dict(zip(columns, cells, strict=False))))
    if columns is None:
        raise TraceError(f"{name}:1: got no columns; expected {', '.join(_COLUMNS)}")
    rows.sort(key=lambda row: row.timestamp_ms or 0.0)
    return TraceFile(name, tuple(rows))


def _cells(line: Line) -> list[str]:
    try:
        text = line.text.decode("utf-8-sig")
        rows = list(csv.reader([text], strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{line.place} is not CSV: {error}") from None
    return rows[0] if rows else []


def _row(line: Line, cells: dict[str, str]) -> TraceRow:
    for column in _COLUMNS:
        if column not in cells:
            raise TraceError(f"{line.place}: field {column!r} is missing")
    return TraceRow(
        _unix_ms(line, cells["TIMESTAMP"]),
        max(_count(line, "ContextTokens", cells), 1),
        max(_count(line, "GeneratedTokens", cells), 1),
    )


def _count(line: Line, column: str, cells: dict[str, str]) -> int:
    try:
        return whole(line, column, float(cells[column]))
    except (ValueError, OverflowError) as error:
        if isinstance(error, TraceError):
            raise
        raise line.error(column, cells[column], "a whole number") from None


def _unix_ms(line: Line, text: str) -> float:
    """Milliseconds since 1970 of a time with any number of decimals and any zone, or with none.

    `datetime.fromisoformat` of Python 3.11 refuses seven decimals, which the files have. Cutting
    the text would cut the zone as well.
    """
    parts = _TIME.fullmatch(text.strip())
    try:
        if parts is None:
            raise ValueError
        zone = parts["zone"] or "Z"
        # `fromisoformat` needs the minutes of a zone.
        zone = "Z" if zone == "UTC" else f"{zone}:00" if len(zone) == 3 else zone
        at = datetime.fromisoformat(f"{parts['date']} {parts['time']}{zone}")
        seconds = (at - _EPOCH) / timedelta(seconds=1)
    except (ValueError, OverflowError):
        expected = "a time such as 2023-11-16 18:17:03.9799600, with or without a zone"
        raise line.error("TIMESTAMP", text, expected) from None
    return seconds * 1e3 + float(f"0.{parts['fraction'] or 0}") * 1e3
