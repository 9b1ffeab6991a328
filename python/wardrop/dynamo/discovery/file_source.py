"""Discovery through Dynamo's file store."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from wardrop.dynamo.backoff import Backoff
from wardrop.dynamo.daemon_thread import run_in_thread
from wardrop.dynamo.discovery.entries import BUCKETS, Entry, decode_entry
from wardrop.dynamo.discovery.file_store import entry_files, entry_key, read_entry
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.scope import Scope
from wardrop.dynamo.discovery.store_reader import StoreReader

_MAX_BACKOFF_S = 5.0


class _Stamp(NamedTuple):
    """Figures of a file that change with its content."""

    modified_ns: int
    size_bytes: int
    inode: int


class _File(NamedTuple):
    """One file of the store, as read last.

    Attributes:
        stamp: The file's figures at that reading.
        entry: The last entry that could be decoded; None before the first.
        problem: Why the present content cannot be decoded; None when it can.
    """

    stamp: _Stamp
    bucket: str
    key: str
    entry: Entry | None
    problem: str | None


class FileSource:
    """Polls a file store and reads a file again only when its size, time or inode changed.

    A thread of its own polls, so that a slow file system delays nothing else. While the store
    cannot be listed, the last view stays in force and `last_error` has the reason. Cost of a poll
    without changes: one `stat` per entry (about 2 µs each).

    Args:
        root: Folder of the store.
        poll_interval_s: Time between two polls.
        scope: Namespaces that the frontends see.
    """

    def __init__(self, root: Path, poll_interval_s: float, scope: Scope | None = None) -> None:
        self.root = root
        self.last_error: str | None = None
        self.answered_unix_s: float | None = None
        self._poll_interval_s = poll_interval_s
        self._files: dict[Path, _File] = {}
        self._reader = StoreReader(scope)

    @property
    def name(self) -> str:
        """The folder of the store."""
        return f"file store {self.root}"

    def frontends_restarted(self) -> None:
        """Report that a frontend lost its memory of the store, to the reader."""
        self._reader.forget_order()

    async def views(self) -> AsyncIterator[FleetView]:
        """A view at once, then a view after each change."""
        backoff = Backoff(self._poll_interval_s, _MAX_BACKOFF_S)
        first = True
        while True:
            pause_s = self._poll_interval_s
            try:
                changed = await run_in_thread(self._poll)
            except Exception as error:
                self.last_error = f"{self.root}: {type(error).__name__}: {error}"
                changed, pause_s = False, backoff.next_s()
            else:
                backoff.reset()
            if changed or first:
                first = False
                yield self._view()
            await asyncio.sleep(pause_s)

    def _view(self) -> FleetView:
        content: dict[str, dict[str, Entry]] = {bucket: {} for bucket in BUCKETS}
        for file in self._files.values():
            if file.entry is not None:
                content[file.bucket][file.key] = file.entry
        problems = tuple(file.problem for file in self._files.values() if file.problem)
        return self._reader.read(content, problems)

    def _poll(self) -> bool:
        """Bring the files up to date; True when the content of an entry changed.

        Raises:
            OSError: A folder cannot be listed. All files then stay as they were read last.
        """
        base = self.root / "v1"
        before = _folder_stamp(base)
        if before is None:
            # A folder that was there may be away for a moment, as with a remounted volume.
            known = "the last view stays in force" if self._files else "yet"
            self.last_error = f"{base} does not exist ({known})"
            return False
        found = {
            path: (bucket, _Stamp(status.st_mtime_ns, status.st_size, status.st_ino))
            for bucket in BUCKETS
            for path, status in entry_files(base / bucket)
        }
        if _folder_stamp(base) != before:
            # The folder went away during the walk, so a file that was not found may still exist.
            self.last_error = f"{base} changed while it was read (the last view stays in force)"
            return False
        changed = False
        shortage: OSError | None = None
        for path, (bucket, stamp) in found.items():
            known = self._files.get(path)
            if known is not None and known.stamp == stamp:
                continue
            try:
                text = read_entry(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                shortage = error
                continue
            changed |= self._take(path, bucket, stamp, text)
        for path in self._files.keys() - found.keys():
            del self._files[path]
            changed = True
        self.last_error = None if shortage is None else f"{base}: {shortage}"
        self.answered_unix_s = time.time()
        return changed

    def _take(self, path: Path, bucket: str, stamp: _Stamp, text: bytes) -> bool:
        """Take over the content of a file; True when its entry or its problem changed.

        A half written file cannot be decoded: the file keeps its last entry until the next poll.
        """
        known = self._files.get(path)
        key = entry_key(path.relative_to(self.root / "v1" / bucket))
        try:
            entry, problem = decode_entry(bucket, key, text), None
        except ValueError as error:
            entry, problem = known.entry if known is not None else None, str(error)
        self._files[path] = _File(stamp, bucket, key, entry, problem)
        return known is None or (known.entry, known.problem) != (entry, problem)


def _folder_stamp(folder: Path) -> tuple[int, int] | None:
    """Figures that change when a folder is moved, mounted or given another child; None without it.

    A folder that is moved away and back keeps its inode, and has another time of its last change.
    """
    try:
        status = folder.stat()
    except OSError:
        return None
    return (status.st_ino, status.st_ctime_ns) if stat.S_ISDIR(status.st_mode) else None
