"""From the command line to the native frontend, which replaces the interpreter."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import resource
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wardrop.config import ConfigError
from wardrop.frontend.memory_file import memory_file

if TYPE_CHECKING:
    from wardrop.frontend.arguments import FrontendArguments

BINARY = "wardrop-frontend"
"""Name of the native frontend, which the wheel `wardrop-frontend` installs."""

DYNAMO_VERSION = "1.6"
"""Line of Dynamo from whose crates the native frontend is built."""

USAGE = "Usage: wardrop frontend [any flag of dynamo.frontend] [--wardrop-NAME VALUE ...]"

OPEN_FILES = 8192
"""Open files that Dynamo's frontend asks for when `DYN_FRONTEND_FD_LIMIT_TARGET` is not set."""


class FrontendMissingError(RuntimeError):
    """The native frontend, or the Dynamo whose flags it takes, is not installed."""


def main(arguments: Sequence[str]) -> int:
    """Start the native frontend in place of this process.

    Args:
        arguments: Flags of `dynamo.frontend`, and Wardrop's.

    Returns:
        2 for a wrong command line, 1 when something is not installed. A start does not return.
    """
    try:
        try:
            _check_dynamo()
        except FrontendMissingError as error:
            if {"-h", "--help"} & set(arguments):
                print(f"{USAGE}\n\nThe flags of Dynamo are not listed: {error}")
                return 0
            raise
        from wardrop.frontend.arguments import parse

        parsed = parse(arguments, os.environ)
        binary = find_binary()
    except ConfigError as error:
        print(f"wardrop frontend: {error}", file=sys.stderr)
        return 2
    except FrontendMissingError as error:
        print(f"wardrop frontend: {error}", file=sys.stderr)
        return 1
    if parsed.dump_config_to:
        _dump(parsed)
    environment = dict(os.environ)
    for name, value in parsed.environment.items():
        if value is None:
            environment.pop(name, None)
        else:
            environment[name] = value
    _raise_open_files(environment)
    sys.stdout.flush()
    sys.stderr.flush()
    file = memory_file("wardrop-settings", json.dumps(parsed.settings))
    return os.execve(binary, [BINARY, "--settings", file], environment)


def find_binary() -> Path:
    """Path of the native frontend.

    Raises:
        FrontendMissingError: It is not installed.
    """
    beside = Path(sysconfig.get_path("scripts")) / BINARY
    if beside.exists():
        return beside
    found = shutil.which(BINARY)
    if found is None:
        raise FrontendMissingError(
            "the native frontend is not installed. `pip install wardrop[frontend]` installs it; in "
            "a checkout `make frontend` builds it"
        )
    return Path(found)


def _dump(parsed: FrontendArguments) -> None:
    module: Any = importlib.import_module("dynamo.common.config_dump")
    module.dump_config(parsed.dump_config_to, parsed.dynamo_config)


def _check_dynamo() -> None:
    from wardrop.dynamo.install import INSTALL

    try:
        version = importlib.metadata.version("ai-dynamo")
        importlib.import_module("dynamo.frontend")
    except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError) as error:
        raise FrontendMissingError(
            "Dynamo is not installed, and its parser reads the flags. In a checkout `make setup` "
            f"installs it; elsewhere: {INSTALL}"
        ) from error
    if not version.startswith(f"{DYNAMO_VERSION}."):
        raise FrontendMissingError(
            f"got Dynamo {version}, expected {DYNAMO_VERSION}.*, from whose crates the native "
            "frontend is built; for other versions use `wardrop dynamo`"
        )


def _raise_open_files(environment: dict[str, str]) -> None:
    """Raise the limit of open files as Dynamo's frontend does; a refusal leaves it as it is."""
    try:
        target = int(environment.get("DYN_FRONTEND_FD_LIMIT_TARGET", str(OPEN_FILES)))
    except ValueError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if target <= 0 or soft == resource.RLIM_INFINITY:
        return
    wanted = target if hard == resource.RLIM_INFINITY else min(target, hard)
    if wanted > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return
