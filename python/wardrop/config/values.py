"""From the text or the YAML value of a setting to a value of the setting's type."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, cast, get_args, get_origin

import msgspec

from wardrop.config.fields import ConfigError
from wardrop.decoding import shown

_TRUE = ("true", "1", "yes")
_FALSE = ("false", "0", "no")


def parse_text(kind: object, text: str, source: str) -> object:
    """The value that a text stands for.

    Args:
        kind: Type of the setting: a plain type, a `Literal`, `tuple[str, ...]` or
            `dict[str, float]`.
        text: Text of a flag or of an environment variable.
        source: Name of the flag or of the variable, for the error.

    Raises:
        ConfigError: The text is no value of that type.
    """
    if kind is bool:
        lowered = text.strip().lower()
        if lowered not in _TRUE + _FALSE:
            raise ConfigError(f"{source}: got {text!r}, expected true or false")
        return lowered in _TRUE
    if kind is int or kind is float:
        try:
            return kind(text)
        except ValueError:
            raise ConfigError(f"{source}: got {text!r}, expected {_describe(kind)}") from None
    if get_origin(kind) is tuple:
        return check_value(kind, [part for part in re.split(r"[,\s]+", text) if part], source)
    if get_origin(kind) is dict:
        pairs = [part.partition("=") for part in text.split(",") if part.strip()]
        try:
            numbers = {name.strip(): float(value) for name, _, value in pairs}
            if not all(map(math.isfinite, numbers.values())):
                raise ValueError
            return numbers
        except ValueError:
            raise ConfigError(f"{source}: got {text!r}, expected name=number,…") from None
    return check_value(kind, text, source)


def check_value(kind: object, value: object, source: str) -> object:
    """The value itself where it has the type; an integer is accepted for a float.

    Args:
        kind: Type of the setting, as in `parse_text`.
        value: Value from a YAML file.
        source: File and key, for the error.

    Raises:
        ConfigError: The value has another type.
    """
    if get_origin(kind) is tuple and isinstance(value, str):
        value = [value]
    try:
        converted = msgspec.convert(value, type=cast(Any, kind))
    except msgspec.ValidationError:
        raise ConfigError(f"{source}: got {shown(value)}, expected {_describe(kind)}") from None
    except RecursionError:
        raise ConfigError(f"{source}: got a value that is nested too deeply") from None
    if isinstance(converted, dict):
        numbers = cast(dict[str, float], converted)
        if not all(map(math.isfinite, numbers.values())):
            raise ConfigError(f"{source}: got {shown(value)}, expected {_describe(kind)}")
        return numbers
    return cast(object, converted)


def _describe(kind: object) -> str:
    if get_origin(kind) is Literal:
        return f"one of {', '.join(get_args(kind))}"
    if get_origin(kind) is tuple:
        return "a list of texts"
    if get_origin(kind) is dict:
        return "names with numbers"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(cast(type, kind), str(kind))
