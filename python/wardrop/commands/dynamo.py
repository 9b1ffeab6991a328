"""`wardrop dynamo`: the command line of the router in front of a Dynamo.

Every setting of `wardrop.config` is a flag here, grouped by stage in the help text. The text of a
flag goes to the parser of the setting's variable, so a bad value has one error text in all sources.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from wardrop.config import Config, ConfigError, Setting, check_gateway, load, settings

_EPILOG = (
    "Arguments after `--` go to dynamo.frontend unchanged, for example: "
    "wardrop dynamo --policy dynamo --http-port 8000 -- --migration-limit 3"
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


class StagedCommand(TyperCommand):
    """A command whose help text has one section per stage.

    Plain text, not a table: at 80 columns a table cuts the longer flags.
    """

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the sections in the order of the stages."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                panel = getattr(parameter, "rich_help_panel", None) or "Options"
                sections.setdefault(panel, []).append(record)
        for panel, records in sections.items():
            with formatter.section(panel):
                formatter.write_dl(records)


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
    try:
        _refuse_stray(frontend_arguments)
        config = load(_texts(flags), os.environ, config_file or _file_from_environment())
        check_gateway(config)
    except ConfigError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    _start_log(config.log.level)
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


def _texts(flags: dict[str, str | bool | list[str] | None]) -> dict[str, str]:
    """The text of each flag that was given, by the key of its setting."""
    given: dict[str, str] = {}
    for setting in settings():
        value = flags.get(_parameter(setting))
        if value is None or value == []:
            continue
        if isinstance(value, bool):
            given[setting.key] = "true" if value else "false"
        else:
            given[setting.key] = value if isinstance(value, str) else ",".join(value)
    return given


def _file_from_environment() -> Path | None:
    path = os.environ.get("WARDROP_CONFIG")
    return Path(path) if path else None


def _start_log(level: str) -> None:
    logging.basicConfig(
        level=getattr(logging, level.upper()),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )


def _parameter(setting: Setting) -> str:
    return f"{setting.stage}__{setting.name}"


def _option(setting: Setting) -> inspect.Parameter:
    """The flag of a setting, with its default in the help text."""
    switch = setting.kind is bool
    several = isinstance(setting.default, tuple | dict)
    names = f"--{setting.flag}/--no-{setting.flag}" if switch else f"--{setting.flag}"
    default = setting.default_text
    text = setting.summary if default == "none" else f"{setting.summary} [default: {default}]"
    option: Any = typer.Option(
        names,
        help=text,
        metavar=None if switch else _metavar(setting.kind),
        show_default=False,
        rich_help_panel=_panel(setting.stage),
    )
    kind: Any = (bool | None) if switch else (list[str] | None) if several else (str | None)
    return inspect.Parameter(
        _parameter(setting),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def _metavar(kind: object) -> str:
    """The placeholder for a value: the choices, or the name of the type."""
    if get_origin(kind) is Literal:
        return "|".join(get_args(kind))
    names: dict[Any, str] = {int: "INT", float: "FLOAT"}
    return names.get(kind, "TEXT")


def _panel(stage: str) -> str:
    """Heading of a stage in the help text: its name and the first sentence of its docstring."""
    summary = cast(type[Any], get_type_hints(Config)[stage]).__doc__ or ""
    sentence = summary.partition(".")[0]
    return f"{stage} ({sentence[:1].lower()}{sentence[1:]})"


def _signature() -> inspect.Signature:
    """The parameters of the command for typer: two of its own, and one per setting."""
    fixed = [
        inspect.Parameter(
            "frontend_arguments",
            inspect.Parameter.KEYWORD_ONLY,
            default=[],
            annotation=Annotated[
                list[str],
                typer.Argument(metavar="-- FLAG", help="flags for dynamo.frontend"),
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


app.command("dynamo", cls=StagedCommand, epilog=_EPILOG)(_with_settings())
