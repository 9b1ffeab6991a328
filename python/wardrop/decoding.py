"""Typed decoding of JSON from outside: stores, admin requests and trace rows.

`msgspec` decodes a text straight into a struct and skips fields that the struct lacks. This module
adds the two limits that a text from outside needs, a size and a depth, and one form of error: the
place, the field, what was received, and what is expected. Cost: O(bytes).
"""

from __future__ import annotations

import re
from typing import Any, TypeVar, cast

import msgspec

from wardrop.errors import InputError

T = TypeVar("T")

MAX_SHOWN_CHARACTERS = 60
"""Length of a received value in an error; a longer value is cut."""

_WRONG = re.compile(r"(?s)Expected (?P<expected>.*?)(?:, got (?P<got>`.*`))?")
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`")
_STEP = re.compile(r"\.(?P<name>[^.\[\]]+)|\[(?P<index>\d+)\]")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
_TYPE = re.compile(rf"\b({'|'.join(_WORDS)})\b")


class DecodeError(InputError):
    """A text is no JSON, is too large or too deep, or a field is not as expected."""


def decode_json(
    decoder: msgspec.json.Decoder[T], text: bytes | str, place: str, limit_bytes: int
) -> T:
    """The value that a JSON text holds.

    Args:
        decoder: Decoder of the expected type.
        text: The text.
        place: Where the text is from, for the error; for example `FILE:LINE`.
        limit_bytes: Largest text that is decoded, in bytes (in characters for a `str`).

    Raises:
        DecodeError: The text is larger than the limit, nested too deeply, or of another form.
    """
    if len(text) > limit_bytes:
        raise DecodeError(f"{place}: got {len(text)} bytes, expected at most {limit_bytes}")
    try:
        return decoder.decode(text)
    except msgspec.ValidationError as error:
        raise DecodeError(f"{place}: {_explain(str(error), text)}") from None
    except RecursionError:
        # msgspec counts its own recursion, so a deep text ends here and not in a stack overflow.
        raise DecodeError(f"{place}: got JSON that is nested too deeply") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise DecodeError(f"{place} is not JSON: {error}") from None


def convert(value: object, kind: object, place: str) -> Any:
    """A decoded value as a value of a type.

    Args:
        value: Dictionaries, lists, texts and numbers, as a JSON or YAML reader yields them.
        kind: The type: a dataclass, a struct, or any type that `msgspec` knows.
        place: Where the value is from, for the error.

    Raises:
        DecodeError: The value, or a value in it, has another type.
    """
    try:
        return msgspec.convert(value, type=cast(Any, kind))
    except msgspec.ValidationError as error:
        raise DecodeError(f"{place}: {_explain(str(error), value)}") from None
    except RecursionError:
        raise DecodeError(f"{place}: got a value that is nested too deeply") from None


def shown(value: object) -> str:
    """A received value for an error text, cut where it is long."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        count = len(cast(list[object], value))
        return f"a list of {count} values" if count > 4 else _cut(str(cast(Any, value)))
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN_CHARACTERS else text[: MAX_SHOWN_CHARACTERS - 1] + "…"


def _explain(text: str, source: object) -> str:
    """The error of `msgspec` with the field first and the received value in it."""
    message, _, place = text.partition(" - at `")
    path = place.rstrip("`").removeprefix("$")
    field = path.removeprefix(".")
    where = f"{field}: " if field else ""
    if missing := _MISSING.fullmatch(message):
        return f"{where}field {missing['name']!r} is missing"
    if unknown := _UNKNOWN.fullmatch(message):
        return f"{where}got the field {unknown['name']!r}, which does not exist here"
    if wrong := _WRONG.fullmatch(message):
        expected = _in_words(wrong["expected"].replace("`", ""))
        value = _value_at(source, path)
        got = _in_words((wrong["got"] or "another value").strip("`"))
        got = got if value is None else shown(value)
        return f"{where}got {got}, expected {expected}"
    return f"{where}{message}"


def _in_words(types: str) -> str:
    """Names of types in words: `int | null` is "a whole number or null"."""
    text = types.replace("int | float", "float")
    return _TYPE.sub(lambda found: _WORDS[found[0]], text).replace(" | ", " or ")


def _value_at(source: object, path: str) -> object:
    """The value below a path of `msgspec`; None where the path cannot be followed."""
    try:
        value: Any = msgspec.json.decode(source) if isinstance(source, bytes | str) else source
        for step in _STEP.finditer(path):
            value = value[step["name"]] if step["name"] else value[int(step["index"])]
    except (msgspec.DecodeError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return value
