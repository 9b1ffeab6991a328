"""One row of a trace as text, and the checks that a type alone cannot express."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from wardrop.decoding import DecodeError, decode_json, shown
from wardrop.traces.rows import TraceError

T = TypeVar("T")

FloatOrInt = int | float
"""A number that must be whole: `whole` checks it."""

MAX_LINE_BYTES = 64 << 20
"""Largest row that is read. A prompt of a million tokens has a row of about 1 MB."""

_FIRST_ID, _LAST_ID = -(2**63), 2**64 - 1
_MAX_ID_CHARACTERS = 32
_MAX_WHOLE = 2**32 - 1
"""Largest length in tokens, as the simulator keeps it."""


@dataclass(frozen=True, slots=True)
class Line:
    """One row as it was written.

    Attributes:
        place: `FILE:LINE`, for errors.
        text: the row.
    """

    place: str
    text: bytes

    def decode(self, decoder: msgspec.json.Decoder[T]) -> T:
        """The row as a struct.

        Raises:
            TraceError: the row is no JSON, or a field is missing or not as expected.
        """
        try:
            return decode_json(decoder, self.text, self.place, MAX_LINE_BYTES)
        except DecodeError as error:
            raise TraceError(str(error)) from None

    def error(self, name: str, value: object, expected: str) -> TraceError:
        """The error for a field whose value is not as expected."""
        return TraceError(f"{self.place}: {name}: got {shown(value)}, expected {expected}")


def whole(line: Line, name: str, value: FloatOrInt, least: int = 0) -> int:
    """A length in tokens as an integer; `512.0` is 512.

    Args:
        line: the row, for the error.
        name: the field, for the error.
        value: the received number.
        least: smallest length that is accepted.

    Raises:
        TraceError: the number has a fraction, is negative, or is below `least`.
    """
    if value != int(value) or not least <= value <= _MAX_WHOLE:
        raise line.error(name, value, f"a whole number from {least} to {_MAX_WHOLE}")
    return int(value)


def block_id(line: Line, name: str, value: int | str) -> int:
    """The id of a block; a number written as text is accepted.

    Args:
        line: the row, for the error.
        name: the field, for the error.
        value: the received id.

    Raises:
        TraceError: the id is no integer of 64 bits, signed or unsigned.
    """
    number = value if isinstance(value, int) else None
    # A longer text is no 64-bit number, and `int` is slow on very many digits.
    if isinstance(value, str) and len(value) <= _MAX_ID_CHARACTERS:
        with contextlib.suppress(ValueError):
            number = int(value)
    if number is None or not _FIRST_ID <= number <= _LAST_ID:
        raise line.error(name, value, "whole numbers of 64 bits, signed or unsigned")
    return number
