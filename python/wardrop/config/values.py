"""From the text or the YAML value of a setting to a value of the setting's type."""

from __future__ import annotations

import math
import re
import types
from typing import Any, Literal, Union, cast, get_args, get_origin

from wardrop.config.fields import ConfigError

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
    origin = get_origin(kind)
    if origin is Literal:
        allowed = get_args(kind)
        if value not in allowed:
            raise ConfigError(f"{source}: got {value!r}, expected one of {', '.join(allowed)}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is tuple:
        items: Any = [value] if isinstance(value, str) else value
        if isinstance(items, list) and all(
            isinstance(item, str) for item in cast(list[object], items)
        ):
            return tuple(cast(list[str], items))
        raise ConfigError(f"{source}: got {value!r}, expected a list of texts")
    if origin is dict:
        entries = cast(dict[object, object], value) if isinstance(value, dict) else {None: None}
        for name, number in entries.items():
            numeric = isinstance(number, int | float) and not isinstance(number, bool)
            if not isinstance(name, str) or not numeric or not math.isfinite(cast(float, number)):
                raise ConfigError(f"{source}: got {value!r}, expected names with numbers")
        return entries
    plain = not isinstance(kind, types.UnionType) and origin is not Union
    if plain and (not isinstance(value, cast(type, kind)) or (kind is int and value is True)):
        raise ConfigError(f"{source}: got {value!r}, expected {_describe(kind)}")
    return value


def _describe(kind: object) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
    return names.get(cast(type, kind), str(kind))
