"""`wardrop select`: the command line of the selection service."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Annotated

import msgspec
import typer

from wardrop.errors import InputError
from wardrop.service.arenas import limit_arenas

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command("select")
def select(
    config: Annotated[Path | None, typer.Option(help="YAML file with settings and workers")] = None,
    grpc_listen: Annotated[
        str, typer.Option(help="host:port of the gRPC service; off for none")
    ] = "127.0.0.1:8093",
    http_listen: Annotated[
        str, typer.Option(help="host:port of Dynamo's selection API; off for none")
    ] = "127.0.0.1:8092",
    policy: Annotated[str, typer.Option(help="name of the policy")] = "toll",
    records: Annotated[
        str | None, typer.Option(help="folder of the decision records; one line per reservation")
    ] = None,
    tracing: Annotated[
        str | None, typer.Option(help="collector for OTLP over HTTP, http://HOST:4318")
    ] = None,
) -> None:
    """Serve decisions: choose a worker for a prompt, book it, and follow its load.

    Callers send each request to the chosen worker themselves. The gRPC service is
    proto/wardrop/v1/select.proto. The HTTP service has the routes of Dynamo's selection service, so
    a client of `python -m dynamo.select_service` can point here.
    """
    from wardrop._core import SelectServer
    from wardrop.selection import SelectFile, read_file

    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    log = logging.getLogger("wardrop.select")
    limit_arenas()
    try:
        file = SelectFile() if config is None else read_file(config)
        if records is not None:
            file = msgspec.structs.replace(file, records=file.records | {"dir": records})
        if tracing is not None:
            file = msgspec.structs.replace(file, tracing=file.tracing | {"endpoint": tracing})
        server = SelectServer(
            file.native_json(_address(grpc_listen), _address(http_listen), policy)
        )
        for worker in file.workers_json():
            server.upsert_worker(worker)
    except (InputError, ValueError) as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    stop = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    try:
        server.start()
    except (RuntimeError, ValueError) as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    import json

    status = json.loads(server.status())
    log.info("gRPC on %s, HTTP on %s", status["grpc_address"], status["http_address"])
    stop.wait()
    server.stop()


def _address(text: str) -> str | None:
    return None if text == "off" else text
