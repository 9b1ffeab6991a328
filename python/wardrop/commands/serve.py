"""`wardrop serve`: the command line of the router in front of engines, without Dynamo.

Every setting of `wardrop.config` is a flag here, except those of a Dynamo.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import typer

from wardrop.commands.flags import (
    StagedCommand,
    file_from_environment,
    given_texts,
    start_log,
    with_settings,
)
from wardrop.config import Config, ConfigError, check_gateway, load
from wardrop.errors import InputError
from wardrop.service.arenas import limit_arenas

_WITHOUT = "dynamo"
"""Stage of a router in front of a Dynamo."""

_EPILOG = (
    "Example: wardrop serve --tokenizer /models/llama "
    "--worker http://10.0.0.1:8000,events=tcp://10.0.0.1:5557,replay=tcp://10.0.0.1:5558 "
    "--worker http://10.0.0.2:8000,events=tcp://10.0.0.2:5557,replay=tcp://10.0.0.2:5558"
)

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def serve(config_file: Path | None, **flags: str | bool | list[str] | None) -> None:
    """Route OpenAI requests to vLLM, SGLang or TensorRT-LLM servers, without Dynamo.

    Listens in front of the servers of --worker, --fleet, --inference-pool and --service, and sends
    each request straight to the server that the policy chooses. Servers with KV events are routed
    by what their caches hold. The router predicts the caches of the others.

    Every flag is also a variable: --http-port is WARDROP_HTTP_PORT. In a variable, a switch is true
    or false, and a list has commas between its items. --config names a YAML file with the same
    settings, grouped by stage as below. The file of --fleet holds the servers, and is read again
    when it changes.
    """
    limit_arenas()
    try:
        texts = given_texts(flags, _WITHOUT)
        file = config_file or file_from_environment()
        config = load(texts, os.environ, file, without=_WITHOUT)
        source, has_events = _fleet(config)
        # Only a default: a mode that the user names stays.
        used = {"predicted.used": "beside" if has_events else "alone"}
        config = load(texts, os.environ, file, without=_WITHOUT, defaults=used)
        # No frontend takes token ids in place of a prompt.
        config = replace(config, prompt=replace(config.prompt, handover=False))
        check_gateway(config)
    except InputError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    start_log(config.log.level)
    raise typer.Exit(_run(config, source))


def _fleet(config: Config) -> tuple[object, bool]:
    """The members, and whether any of them publishes KV events.

    Raises:
        InputError: A worker or the file cannot be used, or there is no worker.
    """
    from wardrop.fleet import FleetSource, FleetSpec, parse_selector, parse_worker
    from wardrop.kubernetes.environment import require_package

    fleet = config.fleet
    spec = FleetSpec(
        workers=tuple(parse_worker(text) for text in fleet.worker_texts),
        kubernetes=tuple(parse_selector(*pair) for pair in fleet.selector_texts),
    )
    if fleet.tokenizer and not Path(fleet.tokenizer).is_dir():
        raise ConfigError(
            f"fleet.tokenizer: got {fleet.tokenizer!r}, which is no folder; expected the folder "
            "with the model's tokenizer.json"
        )
    source = FleetSource(
        spec,
        Path(fleet.file) if fleet.file else None,
        fleet.poll_interval_ms / 1000,
        fleet.tokenizer or None,
        os.environ,
        ca_file=Path(config.upstream.ca_file) if config.upstream.ca_file else None,
    )
    found = source.fleet
    if found.kubernetes:
        require_package()
    if not found.workers and not found.kubernetes and not fleet.file:
        raise ConfigError(
            "got no worker; add --worker http://HOST:PORT, or --fleet FILE with workers, or in a "
            "cluster --inference-pool NAME or --service NAME"
        )
    return source, found.has_events


def _run(config: Config, source: object) -> int:
    # Imported here: `wardrop serve --help` needs neither an event loop nor an HTTP client.
    from typing import cast

    from wardrop.dynamo.server import StartError
    from wardrop.fleet import FleetSource
    from wardrop.fleet.server import run_fleet_server

    try:
        return run_fleet_server(config, cast(FleetSource, source))
    except ConfigError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        return 2
    except StartError as error:
        print(f"wardrop: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


app.command("serve", cls=StagedCommand, epilog=_EPILOG)(with_settings(serve, _WITHOUT))
