"""One run of `wardrop serve`: the gateway in front of engines, and what keeps its fleet.

The data plane is the same as of `wardrop dynamo`, with the workers as its upstreams. No frontend
stands between, so there is nothing to supervise: `FleetSource` follows the members, and the gateway
sends each request straight to the worker that the decision chose.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from wardrop._core import Gateway
from wardrop.config import Config
from wardrop.decoding import decode_json
from wardrop.dynamo.discovery.fleet_view import Model
from wardrop.dynamo.gateway_sync import Actions, GatewaySync
from wardrop.dynamo.server import Server
from wardrop.dynamo.tokenizer_files import TokenizerFilesError
from wardrop.fleet.member import Member
from wardrop.fleet.source import FleetSource
from wardrop.fleet.spec import WorkerSpec
from wardrop.service.admin import Members
from wardrop.service.wiring import DoorName

log = logging.getLogger("wardrop.control")

_MAX_WORKER_BYTES = 64 << 10
_WORKER = msgspec.json.Decoder(WorkerSpec)


class FleetServer(Server):
    """One run of `wardrop serve`.

    Args:
        config: The whole configuration.
        source: The members of the fleet.
        environment: Variables of this process.

    Raises:
        ConfigError: A file cannot be used.
    """

    def __init__(self, config: Config, source: FleetSource, environment: Mapping[str, str]) -> None:
        self._set_up(config, environment, source)
        self.drain_timeout_s = config.fleet.drain_timeout_s
        self.fleet = source

    def _start_gateway(self) -> Gateway:
        gateway = super()._start_gateway()
        gateway.set_workers("[]")
        self.fleet.on_report = gateway.report_engines
        self.fleet.on_members = lambda members: gateway.set_workers(_workers_json(members))
        return gateway

    def _make_sync(self, gateway: Gateway) -> GatewaySync:
        async def served_models() -> set[str]:
            return self.fleet.served_names()

        return GatewaySync(gateway, self.source, Actions(_folder, served_models), 10.0)

    def _members(self) -> Members:
        return _AdminMembers(self.fleet)

    @property
    def _door(self) -> DoorName:
        return "serve"

    def _further_parts(self, gateway: Gateway) -> dict[str, Callable[[], Awaitable[object]]]:
        return {}

    @property
    def upstreams(self) -> list[str]:
        """No frontends: the workers are the upstreams, and the view brings them."""
        return []

    @property
    def _can_dump(self) -> bool:
        return False


class _AdminMembers:
    """The members for the admin API."""

    def __init__(self, source: FleetSource) -> None:
        self._source = source

    def describe(self) -> list[dict[str, Any]]:
        """Every member with its address, models and state, as JSON values."""
        return self._source.describe()

    def add(self, worker_json: bytes) -> None:
        """Add a member, with the fields of a worker of `wardrop serve`.

        Raises:
            DecodeError: The body is no worker, or larger than its limit.
            InputError: The worker cannot be followed.
        """
        worker = decode_json(_WORKER, worker_json, "body", _MAX_WORKER_BYTES)
        self._source.add_worker(worker)

    def remove(self, url: str) -> None:
        """Remove the member at an address.

        Raises:
            InputError: No member that the admin API added has the address.
        """
        self._source.remove_worker(url)


async def _folder(model: Model) -> Path:
    """The folder that the user named for a model.

    Raises:
        TokenizerFilesError: None is named, so prompts of text are routed by load.
    """
    if model.source_path is None:
        raise TokenizerFilesError("name the folder of its files with --tokenizer FOLDER")
    return Path(model.source_path)


def _workers_json(members: list[Member]) -> str:
    return json.dumps(
        [
            {
                "instance": each.instance,
                "url": each.url,
                "server_name": each.server_name,
                "transfer": each.spec.transfer,
            }
            for each in members
        ]
    )


def run_fleet_server(config: Config, source: FleetSource) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code of `wardrop serve`.

    Raises:
        ConfigError, StartError: As `FleetServer` and its `run`.
    """

    async def run() -> int:
        return await FleetServer(config, source, os.environ).run()

    return asyncio.run(run())
