"""Typed access to the fields of one row, with errors that name the line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from wardrop.traces.rows import TraceError

MAX_ID = 2**63 - 1
"""Largest block id: ids are kept as signed 64-bit integers."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row as it was written.

    Attributes:
        place: `FILE:LINE`, for errors.
        values: fields of the row, by name.
    """

    place: str
    values: dict[str, object]

    def error(self, name: str, expected: str) -> TraceError:
        """The error for a field that is missing or not as expected."""
        if name not in self.values:
            return TraceError(f"{self.place}: field {name!r} is missing; expected {expected}")
        value = repr(self.values[name])
        short = value if len(value) <= 60 else value[:57] + "…"
        return TraceError(f"{self.place}: got {name} {short}; expected {expected}")

    def whole(self, name: str, least: int = 0) -> int:
        """A whole number of at least `least`.

        Raises:
            TraceError: the field is missing or anything else.
        """
        value = self.values.get(name)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise self.error(name, f"a whole number of at least {least}")
        return value

    def number(self, name: str) -> float:
        """A finite number.

        Raises:
            TraceError: the field is missing or anything else.
        """
        value = self.values.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not math.isfinite(value)
        ):
            raise self.error(name, "a number of milliseconds")
        return float(value)

    def whole_list(self, name: str, most: int = MAX_ID) -> list[int]:
        """A list of whole numbers from 0 to `most`; numbers written as text are accepted.

        Raises:
            TraceError: the field is missing or anything else.
        """
        value = self.values.get(name)
        expected = f"a list of whole numbers from 0 to {most}"
        if not isinstance(value, list):
            raise self.error(name, expected)
        try:
            ids = [int(cast(int, item)) for item in cast(list[object], value)]
        except (TypeError, ValueError) as error:
            raise self.error(name, expected) from error
        if ids and not 0 <= min(ids) <= max(ids) <= most:
            raise self.error(name, expected)
        return ids

    def inner(self, name: str) -> Line:
        """The object below a field.

        Raises:
            TraceError: the field is missing or not an object.
        """
        value = self.values.get(name)
        if not isinstance(value, dict):
            raise self.error(name, "an object")
        return Line(self.place, cast(dict[str, object], value))
