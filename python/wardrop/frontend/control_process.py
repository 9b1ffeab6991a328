"""The process beside the native frontend that serves admin API and live page, and controls.

    native frontend ── starts ──▶ this process: its standard input is a socket to the frontend

The frontend starts it with the stages of the configuration that it needs, in a file in memory. It
ends when the socket closes, thus with the frontend. It ignores SIGTERM and SIGINT, because the
frontend still answers while it drains. A terminal and systemd send both to every process of a
service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

import wardrop
from wardrop.config import Config
from wardrop.config.control import Control, Shadows
from wardrop.dynamo.parts import Parts
from wardrop.frontend.memory_file import memory_file
from wardrop.frontend.remote_router import FrontendGoneError, RemoteRouter
from wardrop.service import wiring
from wardrop.service.wiring import Wiring

log = logging.getLogger("wardrop.control")

_AGAIN = "WARDROP_CONTROL_PLANE_AGAIN"
"""Variable of the frontend: "1" for a process that another one ran before."""
_LOOK_S = 0.5
"""Time between two looks at whether the frontend still runs."""


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """What the process needs.

    Attributes:
        control: The stage of admin port, controller and curves.
        shadows: The stage of the shadow fleets, of which the calibrator is used here.
        dynamo_version: Version of Dynamo whose flags were read.
        router_mode: How Dynamo chooses a worker where Wardrop abstains.
        discovery: Source of the fleet.
    """

    control: Control
    shadows: Shadows
    dynamo_version: str
    router_mode: str
    discovery: str


def command(settings: Settings) -> list[str]:
    """Program and arguments of the process, which reads its settings from a file in memory."""
    file = memory_file("wardrop-control-plane", msgspec.json.encode(settings).decode())
    return [sys.executable, "-m", "wardrop.frontend.control_process", file]


def main(arguments: Sequence[str]) -> int:
    """Run until the frontend ends.

    Args:
        arguments: Path of the settings, which are JSON.
    """
    settings = msgspec.json.decode(Path(arguments[0]).read_bytes(), type=Settings)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)-7s %(name)s: %(message)s"
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=os.dup(0)) as connection:
        asyncio.run(_run(settings, connection))
    return 0


async def _run(settings: Settings, connection: socket.socket) -> None:
    # The command that starts the frontend imports this module, and needs none of the parts.
    from wardrop.service.control_plane import ControlPlane

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    router = RemoteRouter(connection, lambda: loop.call_soon_threadsafe(ended.set))
    parts = Parts(router)
    config = Config(control=settings.control, shadows=settings.shadows)
    plane = ControlPlane(router, config, lambda: _wiring(settings))
    # After a restart the frontend has learned more than the last save.
    if os.environ.get(_AGAIN) != "1":
        plane.load(parts)
    tasks = [
        asyncio.create_task(parts.keep(name, run), name=name) for name, run in plane.runs().items()
    ]
    tasks.append(asyncio.create_task(_watch(router), name="watch"))
    await ended.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(router: RemoteRouter) -> None:
    """Notice the end of the frontend also while no other part calls it."""
    with contextlib.suppress(FrontendGoneError):
        while True:
            await asyncio.sleep(_LOOK_S)
            router.routing()


def _wiring(settings: Settings) -> Wiring:
    return Wiring(
        wiring.SCHEMA,
        time.time(),
        wardrop.__version__,
        settings.dynamo_version,
        settings.router_mode,
        settings.discovery,
        wiring.switches_of(os.environ),
        settings.control.receipts,
        "frontend",
    )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
