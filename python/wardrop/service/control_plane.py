"""The control plane that every door has: admin API with live page, controller, calibrator, curves.

A door in this process and a door in a process of its own (`wardrop frontend`) run the same parts.
They see the router by the protocol `ControlledRouter`, never by its type.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from wardrop.config import Config
from wardrop.control.audit import AuditLog
from wardrop.control.calibrator import Calibrator
from wardrop.control.door import Door, RoutingTarget
from wardrop.control.loop import ControlLoop, SampleSource
from wardrop.dynamo.frontend_client import read_page
from wardrop.dynamo.parts import Parts
from wardrop.service.admin import Admin, InspectedGateway, Members
from wardrop.service.curve_file import SavedCurves
from wardrop.service.live import LiveFeed
from wardrop.service.live.feed import ObservedGateway
from wardrop.service.wiring import Wiring

Run = Callable[[], Awaitable[object]]


class ControlledRouter(InspectedGateway, ObservedGateway, RoutingTarget, SampleSource, Protocol):
    """The calls of a router that the control plane needs."""


class ControlPlane:
    """The parts of one router's control plane.

    Args:
        router: The router, in this process or in another one.
        config: The stages `control` and `shadows` are used.
        wiring: Returns the facts that `wardrop doctor` reads.
        members: The members of a fleet without Dynamo; None for a fleet of Dynamo.

    Attributes:
        admin: The admin API; None before its start, and without an admin port.
    """

    def __init__(
        self,
        router: ControlledRouter,
        config: Config,
        wiring: Callable[[], Wiring],
        members: Members | None = None,
    ) -> None:
        control = config.control
        self._router = router
        self._config = config
        self._wiring = wiring
        self._members = members
        self._door = Door(
            router, AuditLog(Path(control.audit_file)) if control.audit_file else None
        )
        page = partial(read_page, control.prometheus) if control.prometheus else None
        self._loop = ControlLoop(router, self._door, control.controller, page, moves=control.moves)
        path = control.curves_file
        self._curves = SavedCurves(router, Path(path)) if path else None
        self.admin: Admin | None = None

    def load(self, parts: Parts) -> None:
        """Read the saved curves, where there is a file."""
        if self._curves is not None:
            parts.attempt("saved_curves", self._curves.load)

    def runs(self) -> dict[str, Run]:
        """The parts by name, for `Parts.keep`."""
        control = self._config.control
        runs: dict[str, Run] = {}
        if self._curves is not None:
            runs["saved_curves"] = self._curves.run
        if control.admin_port >= 0:
            runs["admin"] = self._serve_admin
        runs["control"] = partial(self._loop.run, control.period_ms / 1000)
        if self._config.shadows.calibrate:
            calibrator = Calibrator(
                self._router, self._door, lambda: self._loop.controller.on_trial
            )
            runs["calibrator"] = partial(calibrator.run, self._config.shadows.tick_s)
        return runs

    def save(self) -> None:
        """Write the learned curves, where there is a file.

        Raises:
            OSError: The file cannot be written.
        """
        if self._curves is not None:
            self._curves.save()

    async def _serve_admin(self) -> None:
        port = self._config.control.admin_port
        live = LiveFeed(self._router, self._door, lambda: self._loop.figures)
        admin = Admin(self._router, self._door, port, live, self._wiring, self._members)
        self.admin = admin
        try:
            await admin.start()
            await asyncio.Event().wait()
        finally:
            await admin.stop()
