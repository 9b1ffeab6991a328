"""Building blocks of the stages: the declaration of a setting, and the checks of its value."""

from __future__ import annotations

import os
from dataclasses import field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from wardrop.decoding import shown
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


def require_writable(name: str, path: str, appends: bool = False) -> None:
    """Refuse the name of a file that cannot be written.

    Args:
        name: Name of the setting.
        path: The file.
        appends: Whether the router appends to the file. Otherwise it puts a new file in its place,
            which needs the folder.

    Raises:
        ConfigError: The path is a folder, or its folder is missing or cannot be written to.
    """
    try:
        target = Path(path)
        if target.is_dir():
            reason = "it is a folder; give the name of a file"
        elif not target.parent.is_dir():
            reason = f"its folder {target.parent} does not exist; make it, or give another name"
        elif not os.access(target if appends and target.exists() else target.parent, os.W_OK):
            reason = "it cannot be written to"
        else:
            return
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ConfigError(f"{name}: got {shown(path)}, but {reason}")


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
