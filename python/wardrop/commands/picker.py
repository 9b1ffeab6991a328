"""`wardrop picker`: the command line of the endpoint picker."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from wardrop.errors import InputError
from wardrop.service.arenas import limit_arenas

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def picker(
    config: Annotated[Path, typer.Option(help="YAML file with settings, models and workers")],
    check: Annotated[bool, typer.Option("--check", help="check the file and end")] = False,
) -> None:
    """Pick the worker of each request for Envoy, through external processing.

    Envoy, or any gateway with the endpoint picker protocol of the Gateway API Inference Extension,
    sends each request's headers and body over gRPC. The answer names the worker. Models and workers
    in the file are read again after each change of the file. Selectors in the file follow pods of a
    Kubernetes cluster.
    """
    from wardrop.kubernetes.environment import require_package
    from wardrop.picker import PickerServer, StartError, read_file

    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    limit_arenas()
    try:
        file = read_file(config)
        if file.kubernetes:
            require_package()
        server = PickerServer(config, file, os.environ)
    except InputError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    if check:
        selectors = f", {len(file.kubernetes)} selectors" if file.kubernetes else ""
        print(f"{config}: {len(file.models)} models, {len(file.workers)} workers{selectors}")
        return
    try:
        raise typer.Exit(server.run())
    except StartError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
