"""Building blocks of the stages: the declaration of a setting, and the checks of its value."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Any
from urllib.parse import urlsplit

from wardrop.errors import InputError


class ConfigError(InputError):
    """A setting cannot be used. The text names the setting, the value received and what to do."""


def setting(default: Any, summary: str, flag: str | None = None) -> Any:
    """Declare a setting as a field of a stage.

    Args:
        default: Value without any source. An empty dictionary stands for names with numbers.
        summary: One line for the help text, with the unit where the name has none.
        flag: Name of the flag without dashes; by default the stage and the name of the field.
    """
    metadata = {"summary": summary, "flag": flag}
    if isinstance(default, dict):
        return field(default_factory=dict[str, float], metadata=metadata)
    return field(default=default, metadata=metadata)


def require_address(name: str, url: str) -> None:
    """Refuse an address that is not `http://HOST:PORT` or `https://HOST:PORT`.

    Raises:
        ConfigError: The scheme, the host or the port is missing or wrong.
    """
    try:
        parts = urlsplit(url)
        # Reading the port checks it: it must be a number up to 65535.
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{name}: got address {url!r}, expected http://HOST:PORT")


def require_within(name: str, value: float, low: float, high: float) -> None:
    """Refuse a value outside `low` to `high`, and NaN.

    Raises:
        ConfigError: The value is out of range.
    """
    if not low <= value <= high:  # false for NaN as well
        raise ConfigError(f"{name}: got {value!r}, expected {low:g} to {high:g}")


def require_positive(stage: str, values: Any, but: tuple[str, ...] = ()) -> None:
    """Refuse a stage that has a value below 1 in any of its settings, except those named in `but`.

    Raises:
        ConfigError: A value is out of range.
    """
    for item in fields(values):
        if item.name in but:
            continue
        require_within(f"{stage}.{item.name}", getattr(values, item.name), 1, 2**40)
