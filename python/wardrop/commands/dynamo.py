"""`wardrop dynamo`: the command line of the router in front of a Dynamo.

Every setting of `wardrop.config` is a flag here, except those of a fleet without Dynamo.
"""

from __future__ import annotations

import inspect
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from wardrop.commands.flags import (
    StagedCommand,
    file_from_environment,
    given_texts,
    start_log,
    with_settings,
)
from wardrop.config import Config, ConfigError, check_gateway, load
from wardrop.service.arenas import limit_arenas

_EPILOG = (
    "Arguments after `--` go to dynamo.frontend unchanged, for example: "
    "wardrop dynamo --policy dynamo --http-port 8000 -- --migration-limit 3"
)

_WITHOUT = "fleet"
"""Stage of a router without Dynamo."""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def dynamo(
    frontend_arguments: list[str],
    config_file: Path | None,
    **flags: str | bool | list[str] | None,
) -> None:
    """Route OpenAI requests in front of NVIDIA Dynamo.

    Starts dynamo.frontend processes on loopback ports, or uses the frontends of --upstream. Listens
    in front of them, and pins each request to the worker that the policy chooses.

    Every flag is also a variable: --http-port is WARDROP_HTTP_PORT. In a variable, a switch is true
    or false, and a list has commas between its items. --config names a YAML file with the same
    settings, grouped by stage as below.
    """
    limit_arenas()
    try:
        _refuse_stray(frontend_arguments)
        file = config_file or file_from_environment()
        config = load(given_texts(flags, _WITHOUT), os.environ, file, without=_WITHOUT)
        check_gateway(config)
    except ConfigError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    start_log(config.log.level)
    raise typer.Exit(_serve(config, frontend_arguments))


def _serve(config: Config, frontend_arguments: list[str]) -> int:
    # Imported here: `wardrop dynamo --help` needs neither an event loop nor an HTTP client.
    from wardrop.dynamo.install import DynamoMissingError
    from wardrop.dynamo.server import StartError, run_server
    from wardrop.dynamo.supervisor import SupervisorError

    try:
        return run_server(config, frontend_arguments)
    except ConfigError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        return 2
    except (StartError, SupervisorError, DynamoMissingError) as error:
        print(f"wardrop: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _refuse_stray(frontend_arguments: list[str]) -> None:
    if frontend_arguments and not frontend_arguments[0].startswith("-"):
        raise ConfigError(
            f"got the argument {frontend_arguments[0]!r}, expected flags of dynamo.frontend after "
            "`--`; a switch takes no value: write --queue or --no-queue"
        )


_FRONTEND_ARGUMENTS = inspect.Parameter(
    "frontend_arguments",
    inspect.Parameter.KEYWORD_ONLY,
    default=[],
    annotation=Annotated[
        list[str], typer.Argument(metavar="-- FLAG", help="flags for dynamo.frontend")
    ],
)

app.command("dynamo", cls=StagedCommand, epilog=_EPILOG)(
    with_settings(dynamo, _WITHOUT, (_FRONTEND_ARGUMENTS,))
)
