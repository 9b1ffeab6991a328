"""Reading of a YAML file that a person wrote: settings, a fleet, the files of the doors.

A caller converts and checks the content; this module bounds the file and names it in every error.
Cost: O(bytes).
"""

from __future__ import annotations

from pathlib import Path

import yaml

from wardrop.errors import InputError

MAX_FILE_BYTES = 4 << 20
"""Largest file, in bytes. A fleet of 16,384 workers has room in it."""


def read_yaml(
    file: Path, max_bytes: int = MAX_FILE_BYTES, error: type[InputError] = InputError
) -> object:
    """Read a YAML file into plain Python objects.

    Args:
        file: the file.
        max_bytes: largest size of the file, in bytes.
        error: class of the error that the caller promises.

    Returns:
        The content; None for an empty file.

    Raises:
        InputError: The file cannot be read, is too large, is no YAML, or is nested too deeply. The
            text names the file.
    """
    try:
        with file.open("rb") as opened:
            text = opened.read(max_bytes + 1)
        if len(text) > max_bytes:
            raise error(f"{file}: expected at most {max_bytes} bytes")
        content: object = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as cause:
        raise error(f"{file}: cannot be read as YAML: {cause}") from cause
    except RecursionError:
        raise error(f"{file}: cannot be read as YAML: it is nested too deeply") from None
    return content
