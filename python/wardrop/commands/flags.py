"""Flags of a command that runs a router: one per setting, grouped by stage in the help text.

The text of a flag goes to the parser of the setting's variable, so a bad value has one error text
in all sources.
"""

from __future__ import annotations

import inspect
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from wardrop.config import Config, Setting, settings


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


def given_texts(flags: Mapping[str, str | bool | list[str] | None], without: str) -> dict[str, str]:
    """The text of each flag that was given, by the key of its setting.

    Args:
        flags: Values by name of the parameter.
        without: Stage that the command does not have.
    """
    given: dict[str, str] = {}
    for setting in settings(without):
        value = flags.get(_parameter(setting))
        if value is None or value == []:
            continue
        if isinstance(value, bool):
            given[setting.key] = "true" if value else "false"
        else:
            given[setting.key] = value if isinstance(value, str) else ",".join(value)
    return given


def file_from_environment() -> Path | None:
    """The file that `WARDROP_CONFIG` names."""
    path = os.environ.get("WARDROP_CONFIG")
    return Path(path) if path else None


def start_log(level: str) -> None:
    """Log to the standard error output."""
    logging.basicConfig(
        level=getattr(logging, level.upper()),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)-7s %(name)s: %(message)s",
    )


def with_settings(command: Any, without: str, further: tuple[inspect.Parameter, ...] = ()) -> Any:
    """Give a command the parameters that typer reads: `further`, `--config` and the settings.

    Args:
        command: Function of the command, which takes the settings as keywords.
        without: Stage that the command does not have.
        further: Parameters of the command's own.
    """
    config_file = inspect.Parameter(
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
    )
    options = [_option(setting) for setting in settings(without)]
    command.__signature__ = inspect.Signature([*further, config_file, *options])
    command.__annotations__ = {
        name: parameter.annotation for name, parameter in command.__signature__.parameters.items()
    }
    return command


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
