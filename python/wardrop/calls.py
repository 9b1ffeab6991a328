"""One grammar for policies, generators and queues as text: `NAME` or `NAME(key=value,…)`.

    call  = name [ "(" [ pair { "," pair } ] ")" ]
    name  = a lower-case letter, then lower-case letters, digits and "_"
    pair  = name "=" value
    value = number | true | false | null | "text" | [value,…] | word
    word  = a letter, then letters, digits, "_", ".", "-" and "|"

Spaces between the parts do not count. `wardrop replay`, `wardrop set`, `--policy` and `--shadows`
all read this grammar, and each checks the names and the types of the values that it knows.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import NoReturn

from wardrop.errors import InputError

Value = bool | int | float | str | list["Value"] | None

MAX_PARAMETERS = 32
"""Most parameters of one call."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_.|-]*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_EXPECTED = "expected NAME or NAME(parameter=value,…)"


class CallError(InputError):
    """Text that is no call. The text names what was received and what was expected."""


@dataclass(frozen=True)
class Call:
    """A name with parameters.

    Attributes:
        name: what is called.
        parameters: values by name, in the order in which they were written.
    """

    name: str
    parameters: dict[str, Value] = field(default_factory=dict[str, Value])

    def __str__(self) -> str:
        """The call as `parse_call` reads it."""
        if not self.parameters:
            return self.name
        pairs = (f"{key}={json.dumps(value)}" for key, value in self.parameters.items())
        return f"{self.name}({','.join(pairs)})"

    def numbers(self) -> dict[str, int | float]:
        """The parameters of a call that takes numbers only.

        Raises:
            CallError: a value is not a number.
        """
        found: dict[str, int | float] = {}
        for key, value in self.parameters.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise CallError(f"{self.name}: got {key}={value!r}, expected {key}=number")
            found[key] = value
        return found


def parse_call(text: str) -> Call:
    """Read one call.

    Raises:
        CallError: the text does not follow the grammar, or names a parameter twice.
    """
    text = text.strip()
    head, bracket, rest = text.partition("(")
    name = head.strip()
    if not _NAME.fullmatch(name) or (bracket and not rest.endswith(")")):
        raise CallError(f"got {text!r}, {_EXPECTED}")
    pairs = split_outside(rest[:-1], ",") if bracket else []
    if len(pairs) > MAX_PARAMETERS:
        raise CallError(f"got {len(pairs)} parameters of {name!r}, expected at most 32")
    parameters: dict[str, Value] = {}
    for pair in pairs:
        key, equals, value = (part.strip() for part in pair.partition("="))
        if not equals or not _NAME.fullmatch(key):
            raise CallError(f"got {pair.strip()!r} in {text!r}, {_EXPECTED}")
        if key in parameters:
            raise CallError(f"got {key!r} twice in {text!r}, expected every parameter once")
        parameters[key] = _value(value, text)
    return Call(name, parameters)


def split_outside(text: str, separator: str) -> list[str]:
    """Split at a separator that is outside of brackets and quotes; blank parts are left out."""
    parts = [""]
    depth, is_quoted = 0, False
    for letter in text:
        if letter == '"':
            is_quoted = not is_quoted
        elif not is_quoted:
            depth += (letter in "([") - (letter in ")]")
        if letter == separator and depth == 0 and not is_quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return [part for part in parts if part.strip()]


def _value(text: str, whole: str) -> Value:
    try:
        value: Value = json.loads(text, parse_constant=_not_finite)
    except (ValueError, RecursionError):
        if _NUMBER.fullmatch(text):
            value = float(text)  # a number that JSON does not write so, like .5
        elif _WORD.fullmatch(text) and text not in ("NaN", "Infinity"):
            return text
        else:
            raise CallError(
                f"got the value {text!r} in {whole!r}, expected a number, true, false, a word or "
                "a list"
            ) from None
    if isinstance(value, dict):
        raise CallError(f"got the value {text!r} in {whole!r}, expected no object")
    if isinstance(value, int | float) and not (math.isfinite(value) and abs(value) < 2**64):
        raise CallError(f"got the value {text!r} in {whole!r}, expected a number below 2^64")
    return value


def _not_finite(text: str) -> NoReturn:
    raise ValueError(text)
