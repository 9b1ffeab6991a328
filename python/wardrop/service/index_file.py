"""The prefix index in a file, which keeps it over a restart of the router.

The file is read at start, and written periodically and at stop. A worker may have restarted while
the router was down. The gateway therefore saves the publisher and the position of each worker's
feed, and checks a restored worker against the feed's next events: see the page on the prefix
index, section Restarts. A file that cannot be used costs one warning, and never a start or a
request.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from wardrop.config import IndexFile

log = logging.getLogger("wardrop.control")

_RESTORE_TIMEOUT_S = 120.0
"""Pools of the file that discovery has not named after this time are given up."""
_CLOCK_SLACK_S = 60.0
"""A file may be so far in the future: the clocks of two machines differ."""

Pool = tuple[str, str]
"""Model and role."""


class Indexed(Protocol):
    """The methods of `wardrop._core.Gateway` that save and restore the index."""

    def save_index(self) -> bytes:
        """Every pool's index with the positions of its feeds."""
        ...

    def saved_index(self, data: bytes, /) -> str:
        """The pools in saved bytes, and when they were saved, as JSON."""
        ...

    def restore_index(
        self, model: str, role: str, data: bytes, publishers: list[int], dump_follows: bool
    ) -> str:
        """Restore one pool; the numbers of workers by outcome, as JSON."""
        ...


class SavedIndex:
    """The index of a gateway in a file.

    Args:
        gateway: The gateway with the index.
        settings: The file, its bounds, and the time between two writes.
        dump_follows: Whether the blocks of workers that miss events are read from Dynamo again.
    """

    def __init__(self, gateway: Indexed, settings: IndexFile, dump_follows: bool) -> None:
        self._gateway = gateway
        self._settings = settings
        self._path = Path(settings.file)
        self._dump_follows = dump_follows
        self._data = b""
        self._waiting: set[Pool] = set()
        self._writing = threading.Lock()
        self._too_large = False

    def load(self) -> None:
        """Read the file. Its pools are restored when discovery has named their workers."""
        if not self._path.exists():
            log.info("no index in %s yet: it is learned from events", self._path)
            return
        try:
            data, limit = _read(self._path, self._settings.max_bytes), self._settings.max_bytes
            if data is None:
                raise ValueError(
                    f"it is larger than --index-max-bytes {limit}; raise the limit or remove the "
                    "file"
                )
            saved: dict[str, Any] = json.loads(self._gateway.saved_index(data))
            self._refuse_age(time.time() - float(saved["saved_at_s"]))
        except (ValueError, OSError) as error:
            log.warning("index file %s is not used, the index starts empty: %s", self._path, error)
            return
        self._data = data
        # A pool without KV events, such as a pool of decode workers, has nothing to restore.
        self._waiting = {
            (str(pool["model"]), str(pool["role"])) for pool in saved["pools"] if pool["whole"]
        }

    def _refuse_age(self, age_s: float) -> None:
        limit_s = self._settings.max_age_s
        if age_s > limit_s:
            raise ValueError(f"it was saved {age_s:.0f} s ago, --index-max-age-s is {limit_s:g}")
        if age_s < -_CLOCK_SLACK_S:
            raise ValueError(f"it was saved {-age_s:.0f} s in the future; check the clock")

    def restore(self, pool: Pool, publishers: Iterable[int]) -> None:
        """Restore one pool. Must be called before the gateway subscribes to the pool's feeds.

        Args:
            pool: Model and role.
            publishers: Publishers of the pool's feeds of KV events.
        """
        if pool not in self._waiting:
            return
        self._waiting.discard(pool)
        model, role = pool
        try:
            report: dict[str, int] = json.loads(
                self._gateway.restore_index(
                    model, role, self._data, list(publishers), self._dump_follows
                )
            )
        except (ValueError, RuntimeError) as error:
            log.warning("index of %s, %s starts empty: %s", model, role, error)
            return
        finally:
            self._forget_when_done()
        counts = [report[n] for n in ("taken_over", "blocks", "restarted", "not_known", "gone")]
        log.log(
            logging.INFO if report["taken_over"] else logging.WARNING,
            "index of %s, %s: restored %d workers with %d blocks; %d workers restarted and are "
            "empty, %d were saved incompletely and are empty, %d left",
            model,
            role,
            *counts,
        )

    def _forget_when_done(self) -> None:
        if not self._waiting:
            self._data = b""

    async def run(self) -> None:
        """Write the file periodically, until cancelled."""
        started_s = time.monotonic()
        while True:
            await asyncio.sleep(self._settings.interval_s)
            if self._waiting and time.monotonic() - started_s > _RESTORE_TIMEOUT_S:
                for model, role in sorted(self._waiting):
                    log.warning(
                        "the index file %s has a pool %s, %s that discovery does not name: dropped",
                        self._path,
                        model,
                        role,
                    )
                self._waiting.clear()
                self._forget_when_done()
            await self.save()

    async def save(self) -> None:
        """Write the file in another thread, unless pools that it holds are still to be restored."""
        if not self._waiting:
            await asyncio.to_thread(self._write)

    def _write(self) -> None:
        with self._writing:
            data = self._gateway.save_index()
            limit = self._settings.max_bytes
            if len(data) > limit:
                if not self._too_large:
                    text = "the index is not saved: %d bytes, --index-max-bytes is %d"
                    log.warning(text, len(data), limit)
                self._too_large = True
                return
            try:
                _replace(self._path, data)
            except OSError as error:
                log.warning("the index cannot be saved: %s", error)


def _read(path: Path, limit_bytes: int) -> bytes | None:
    """The content of a file; None when it is longer than `limit_bytes`."""
    with path.open("rb") as file:
        data = file.read(limit_bytes + 1)
    return data if len(data) <= limit_bytes else None


def _replace(path: Path, data: bytes) -> None:
    """Write a temporary file, then rename it: a reader sees the old content or the new one."""
    draft = path.with_name(path.name + ".tmp")
    try:
        with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
