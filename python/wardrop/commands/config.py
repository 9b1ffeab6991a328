"""`wardrop config`: print the defaults, check a configuration file, print its JSON schema."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from wardrop.config import ConfigError, check_files, check_gateway, load
from wardrop.config.schema import changed_settings, defaults_file, json_schema

Door = Annotated[
    Literal["dynamo", "serve"],
    typer.Option("--for", help="command that reads the file: `wardrop dynamo` or `wardrop serve`"),
]
_WITHOUT = {"dynamo": "fleet", "serve": "dynamo"}
"""Stage that each command does not have."""

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Print the default configuration, check a file, or print the JSON schema.",
)


@app.command("defaults")
def print_defaults(door: Door = "dynamo") -> None:
    """Print all settings with their defaults, as a file for --config."""
    print(defaults_file(_WITHOUT[door]), end="")


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="configuration file, YAML")],
    door: Door = "dynamo",
    environment: Annotated[
        bool, typer.Option(help="apply the WARDROP_* variables as well, as a start would")
    ] = False,
    output: Annotated[Literal["text", "json"], typer.Option(help="form of the output")] = "text",
) -> None:
    """Check FILE as a start would, and print each setting that differs from its default.

    Nothing is started and no port is opened. Exit code 2: the file cannot be used.
    """
    try:
        if not file.is_file():
            raise ConfigError(f"got no file at {str(file)!r}, expected a YAML file")
        config = load({}, os.environ if environment else {}, file, without=_WITHOUT[door])
        check_files(config)
        check_gateway(config)
    except ConfigError as error:
        print(f"wardrop config: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    rows = changed_settings(config)
    if output == "json":
        body = {key: {"value": value, "default": default} for key, value, default in rows}
        print(msgspec.json.encode(body).decode())
        return
    print(f"{file} can be used: {len(rows)} settings differ from their defaults")
    for key, value, default in rows:
        print(f"  {key}: {value} (default: {default})")


@app.command()
def schema(door: Door = "dynamo") -> None:
    """Print the JSON schema of the file, for editors and for checks in CI."""
    print(msgspec.json.format(msgspec.json.encode(json_schema(_WITHOUT[door])), indent=2).decode())
