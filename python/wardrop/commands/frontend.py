"""`wardrop frontend`: Dynamo's frontend with the routing decision in process.

The command takes every flag of `dynamo.frontend` unread, because Dynamo's own parser reads them.
"""

from __future__ import annotations

import typer

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
def frontend(context: typer.Context) -> None:
    """Serve a Dynamo with Wardrop's decision inside Dynamo's own frontend."""
    from wardrop.frontend.launch import main

    raise typer.Exit(main(context.args))
