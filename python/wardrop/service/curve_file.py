"""Learned latency curves in a file, which keeps them over a restart of the router.

The file is read at start and written each minute and at stop. A file that cannot be read costs one
warning, and the curves are learned again.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from wardrop.control import curves
from wardrop.control.curves import CurveSource

log = logging.getLogger("wardrop.control")

_SAVE_INTERVAL_S = 60.0
_RESTORE_INTERVAL_S = 0.5
_RESTORE_TIMEOUT_S = 120.0
"""Pools of the file that discovery has not named after this time are given up."""


class SavedCurves:
    """The curves of a gateway in a file.

    Args:
        gateway: The gateway with the curves.
        path: The file.
    """

    def __init__(self, gateway: CurveSource, path: Path) -> None:
        self._gateway = gateway
        self._path = path
        self._pending: list[dict[str, Any]] = []

    def load(self) -> None:
        """Read the file. Its pools are restored when discovery has named their workers."""
        if not self._path.exists():
            log.info("no curves in %s yet: they are learned", self._path)
            return
        try:
            self._pending = curves.load(self._path)
        except (ValueError, OSError) as error:
            log.warning("the saved curves are not used, and are learned again: %s", error)

    async def run(self) -> None:
        """Restore the pools of the file, then save every minute, until cancelled."""
        waited_s = 0.0
        while self._pending and waited_s < _RESTORE_TIMEOUT_S:
            self.restore()
            await asyncio.sleep(_RESTORE_INTERVAL_S)
            waited_s += _RESTORE_INTERVAL_S
        while True:
            await asyncio.sleep(_SAVE_INTERVAL_S)
            self.save()

    def restore(self) -> None:
        """Restore the pools of the file that have workers now."""
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
                log.warning("curves of %s, %s are learned again: %s", model, role, error)
        self._pending = left

    def save(self) -> None:
        """Write the file, unless pools that it holds are still to be restored."""
        if self._pending:
            return
        try:
            curves.save(self._gateway, self._path)
        except OSError as error:
            log.warning("the curves cannot be saved: %s", error)
