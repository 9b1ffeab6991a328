"""Keeps the prefix index over restarts: a file, read at start, written now and then and at stop.

A file cannot know whether a worker restarted meanwhile. So the gateway saves with each worker where
its feed stood and whose it was, and judges what it took over by what comes next: `docs/core.md`,
Restarts. Nothing here can fail a start or a request: a file that cannot be used costs one warning.
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

_GIVE_UP_S = 120.0
_CLOCK_SLACK_S = 60.0

Pool = tuple[str, str]
"""Model and role."""


class Indexed(Protocol):
    """The part of a gateway whose index is kept."""

    def save_index(self) -> bytes:
        """Every pool's index with the positions of its feeds."""
        ...

    def saved_index(self, data: bytes, /) -> str:
        """What such bytes hold, as JSON."""
        ...

    def restore_index(
        self, model: str, role: str, data: bytes, publishers: list[int], dump_follows: bool
    ) -> str:
        """Take one pool over; what of how many, as JSON."""
        ...


class IndexKeeper:
    """See the module.

    Args:
        gateway: whose index it is.
        settings: the file, its bounds, and how often it is written.
        dump_follows: blocks of workers whose events are missing are read again from Dynamo.
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
        """Read the file; its pools are taken over when discovery has named their workers."""
        if not self._path.exists():
            log.info("no index in %s yet: it is learned anew", self._path)
            return
        try:
            data, limit = _read(self._path, self._settings.max_bytes), self._settings.max_bytes
            if data is None:
                raise ValueError(
                    f"it is larger than --index-max-bytes {limit}; raise that or remove the file"
                )
            saved: dict[str, Any] = json.loads(self._gateway.saved_index(data))
            self._refuse_age(time.time() - float(saved["saved_at_s"]))
        except (ValueError, OSError) as error:
            log.warning("index file %s is not used, the index starts empty: %s", self._path, error)
            return
        self._data = data
        # A pool without events, as that of decode workers, has nothing to take over.
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
        """Take one pool over; to be called before its first feed is followed."""
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
        told = (
            "%d workers and %d blocks taken over; empty: %d that restarted, %d not known as a whole"
        )
        told += "; %d are gone"
        counts = [report[n] for n in ("taken_over", "blocks", "restarted", "not_known")]
        level = logging.INFO if report["taken_over"] else logging.WARNING
        log.log(level, f"index of %s, %s: {told}", model, role, *counts, report["gone"])

    def _forget_when_done(self) -> None:
        if not self._waiting:
            self._data = b""

    async def run(self) -> None:
        """Write the file every now and then, until cancelled."""
        started_s = time.monotonic()
        while True:
            await asyncio.sleep(self._settings.interval_s)
            if self._waiting and time.monotonic() - started_s > _GIVE_UP_S:
                for model, role in sorted(self._waiting):
                    log.warning("index file %s has %s, %s: not here", self._path, model, role)
                self._waiting.clear()
                self._forget_when_done()
            await self.save()

    async def save(self) -> None:
        """Write the file, off this thread; what was read and not taken over yet is not lost."""
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
                log.warning("the index can not be saved: %s", error)


def unusable(path: Path) -> str | None:
    """What keeps a file of this name from being written, if anything."""
    if path.is_dir():
        return "it is a folder; give the name of a file"
    if not path.parent.is_dir():
        return f"its folder {path.parent} does not exist; make it, or give another name"
    if not os.access(path.parent, os.W_OK):
        return f"its folder {path.parent} can not be written to"
    return None


def _read(path: Path, limit: int) -> bytes | None:
    """The content; None when it is longer than `limit`."""
    with path.open("rb") as file:
        data = file.read(limit + 1)
    return data if len(data) <= limit else None


def _replace(path: Path, data: bytes) -> None:
    """Write beside it, then put it in its place: a reader sees the old file or the new one."""
    beside = path.with_name(path.name + ".tmp")
    try:
        with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError:
        beside.unlink(missing_ok=True)
        raise
