"""The files that a configuration names: checks before anything starts, and the timing table."""

from __future__ import annotations

import os
from pathlib import Path

from wardrop.config.config import Config
from wardrop.config.fields import ConfigError
from wardrop.decoding import shown
from wardrop.timing.points import Point, timing_points


def check_files(config: Config) -> None:
    """Refuse a configuration with a file that cannot be written.

    Raises:
        ConfigError: The text names the setting, the file and what to do.
    """
    for name, path, appends in (
        ("control.audit_file", config.control.audit_file, True),
        ("control.curves_file", config.control.curves_file, False),
        ("index.file", config.index.file, False),
    ):
        if path:
            _require_writable(name, path, appends)


def _require_writable(name: str, path: str, appends: bool) -> None:
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


def configured_points(table: str) -> dict[str, list[Point]]:
    """The points of the setting `control.timing_table`; none where it is empty.

    Raises:
        ConfigError: The table cannot be read.
    """
    try:
        return timing_points(Path(table)) if table else {}
    except (ValueError, OSError) as error:
        raise ConfigError(f"control.timing_table: {error}") from error
