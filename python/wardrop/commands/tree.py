"""The tree of commands under `wardrop`, which imports a subcommand's module when it runs.

The tree holds a placeholder per subcommand, enough for help, suggestions and shell completion.
The module of a subcommand is imported when the command line names that subcommand. Options
therefore complete in the shell too: `wardrop --install-completion` sets that up.
"""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from wardrop.commands import SUBCOMMANDS


class LazyGroup(TyperGroup):
    """A group that knows the names of its commands and imports a command when it is called."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name, subcommand in SUBCOMMANDS.items():
            self.add_command(TyperCommand(name, help=subcommand.summary))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The name, the imported command and the remaining arguments."""
        name, placeholder, rest = super().resolve_command(ctx, args)
        if name is None or placeholder is None:
            return name, placeholder, rest
        command = get_command(importlib.import_module(SUBCOMMANDS[name].module).app)
        return name, command, rest


def _print_version(wanted: bool) -> None:
    if wanted:
        import wardrop

        typer.echo(f"wardrop {wardrop.__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def wardrop(
    version: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_print_version, is_eager=True, help="print the version"
        ),
    ] = False,
) -> None:
    """KV-cache-aware request router for disaggregated LLM inference."""
