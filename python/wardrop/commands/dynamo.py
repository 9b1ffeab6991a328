"""`wardrop dynamo`: the command line of the router in front of a Dynamo.

Every setting of `wardrop.config` is a flag here; the text of a flag goes to the same parser as its
variable, so a bad value has one error text whatever it came from.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from wardrop.config import Config, ConfigError, Setting, load, settings

_EPILOG = (
    "What follows `--` goes to dynamo.frontend unchanged, for example: "
    "wardrop dynamo --policy dynamo --http-port 8000 -- --migration-limit 3"
)


def dynamo(
    frontend_arguments: list[str],
    config_file: Path | None,
    **flags: str | list[str] | None,
) -> None:
    """Route OpenAI requests in front of NVIDIA Dynamo.

    Starts stock dynamo.frontend children on loopback ports (or uses --upstream ones), listens in
    front of them, and pins each request to the worker that the policy chooses.
    """
    given: dict[str, str] = {}
    for setting in settings():
        text = flags.get(_parameter(setting))
        if text is not None and text != []:
            given[setting.key] = text if isinstance(text, str) else ",".join(text)
    file = config_file or _file_from_environment()
    try:
        config = load(given, os.environ, file)
    except ConfigError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    _start_log(config.log.level)
    raise typer.Exit(_serve(config, frontend_arguments))


def _serve(config: Config, frontend_arguments: list[str]) -> int:
    # Here and not above: `wardrop --help` must not pay for an event loop and an HTTP client.
    from wardrop.dynamo.install import DynamoMissingError
    from wardrop.dynamo.serve import StartError, run_server
    from wardrop.dynamo.supervisor import SupervisorError

    try:
        return run_server(config, frontend_arguments)
    except (StartError, SupervisorError, DynamoMissingError, ConfigError) as error:
        print(f"wardrop: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _file_from_environment() -> Path | None:
    named = os.environ.get("WARDROP_CONFIG")
    return Path(named) if named else None


def _start_log(level: str) -> None:
    logging.basicConfig(
        level=getattr(logging, level.upper()),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )


def _parameter(setting: Setting) -> str:
    return f"{setting.stage}__{setting.name}"


def _option(setting: Setting) -> inspect.Parameter:
    """A text flag for a setting; its help names the variable and the default."""
    kinds = {bool: "BOOL", int: "INT", float: "FLOAT"}
    metavar: str = cast(dict[Any, str], kinds).get(setting.kind, "TEXT")
    text = f"{setting.says} [env: {setting.variable}] [default: {setting.default_text}]"
    option: Any = typer.Option(
        f"--{setting.flag}",
        help=text,
        metavar=metavar,
        show_default=False,
        rich_help_panel=setting.stage,
    )
    several = isinstance(setting.default, tuple | dict)
    return inspect.Parameter(
        _parameter(setting),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[(list[str] | None) if several else (str | None), option],
    )


def _signature() -> inspect.Signature:
    """The command's own parameters and one per setting, for typer to read."""
    fixed = [
        inspect.Parameter(
            "frontend_arguments",
            inspect.Parameter.KEYWORD_ONLY,
            default=[],
            annotation=Annotated[
                list[str], typer.Argument(help="flags for dynamo.frontend, after `--`")
            ],
        ),
        inspect.Parameter(
            "config_file",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                Path | None,
                typer.Option(
                    "--config",
                    help="strict YAML file [env: WARDROP_CONFIG]",
                    metavar="FILE",
                    show_default=False,
                ),
            ],
        ),
    ]
    return inspect.Signature(fixed + [_option(setting) for setting in settings()])


def _with_settings() -> Any:
    command: Any = dynamo
    command.__signature__ = _signature()
    command.__annotations__ = {
        name: parameter.annotation for name, parameter in command.__signature__.parameters.items()
    }
    return command


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app.command("dynamo", epilog=_EPILOG)(_with_settings())
