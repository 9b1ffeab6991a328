"""Keeps learned latency curves over restarts: a file, read at start and written now and then."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from wardrop.control import curves
from wardrop.control.curves import Curved

log = logging.getLogger("wardrop.control")

_EVERY_S = 60.0
_RETRY_S = 0.5
_GIVE_UP_S = 120.0


class CurveKeeper:
    """See the module. A file that can not be read is told and left behind; learning starts anew."""

    def __init__(self, gateway: Curved, path: Path) -> None:
        self._gateway = gateway
        self._path = path
        self._pending: list[dict[str, Any]] = []

    def load(self) -> None:
        """Read the file; its pools are taken over when discovery has named their workers."""
        if not self._path.exists():
            log.info("no curves in %s yet: they are learned anew", self._path)
            return
        try:
            self._pending = curves.load(self._path)
        except (ValueError, OSError) as error:
            log.warning("curves are learned anew: %s", error)

    async def run(self) -> None:
        """Restore what was read, then save every minute, until cancelled."""
        waited_s = 0.0
        while self._pending and waited_s < _GIVE_UP_S:
            self.restore()
            await asyncio.sleep(_RETRY_S)
            waited_s += _RETRY_S
        while True:
            await asyncio.sleep(_EVERY_S)
            self.save()

    def restore(self) -> None:
        """Hand over the pools that have workers by now."""
        present = {(p["model"], p["role"]) for p in json.loads(self._gateway.curves())}
        left: list[dict[str, Any]] = []
        for pool in self._pending:
            model, role = str(pool["model"]), str(pool["role"])
            if (model, role) not in present:
                left.append(pool)
                continue
            try:
                workers = self._gateway.restore_curves(model, role, json.dumps(pool["record"]))
                log.info("curves of %s, %s: restored, with %d known workers", model, role, workers)
            except ValueError as error:
                log.warning("curves of %s, %s are learned anew: %s", model, role, error)
        self._pending = left

    def save(self) -> None:
        """Write the file; what was read and not taken over yet is not lost."""
        if self._pending:
            return
        try:
            curves.save(self._gateway, self._path)
        except OSError as error:
            log.warning("curves can not be saved: %s", error)
