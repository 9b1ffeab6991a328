"""Discovery through Dynamo's file store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from wardrop.dynamo.discovery.file_store import entry_key, read_entry
from wardrop.dynamo.discovery.fleet_view import FleetView
from wardrop.dynamo.discovery.store_reader import BUCKETS, JsonObject, read_fleet_view


class _Stamp(NamedTuple):
    """Figures of a file that change with its content."""

    modified_ns: int
    size_bytes: int
    inode: int


class _Entry(NamedTuple):
    """One file of the store, as read last. `content` is None where it was no whole JSON object."""

    stamp: _Stamp
    bucket: str
    key: str
    content: JsonObject | None


class FileSource:
    """Polls a file store and reads a file again only when its size, time or inode changed.

    Cost of a poll without changes: one `stat` per entry (about 2 µs each).
    """

    def __init__(self, root: Path, poll_interval_s: float) -> None:
        self.root = root
        self.last_error: str | None = None
        self._poll_interval_s = poll_interval_s
        self._entries: dict[Path, _Entry] = {}

    @property
    def name(self) -> str:
        """The folder of the store."""
        return f"file store {self.root}"

    async def views(self) -> AsyncIterator[FleetView]:
        """A view at once, then a view after each change."""
        first = True
        while True:
            if self._poll() or first:
                first = False
                yield read_fleet_view(self._content())
            await asyncio.sleep(self._poll_interval_s)

    def _poll(self) -> bool:
        """Bring the entries up to date; True when the content of an entry changed."""
        seen: set[Path] = set()
        changed = False
        base = self.root / "v1"
        self.last_error = None if base.is_dir() else f"{base} does not exist (yet)"
        for bucket in BUCKETS:
            for path in (base / bucket).rglob("*"):
                try:
                    status = path.stat()
                    if path.is_dir() or path.name.startswith("."):
                        continue
                    stamp = _Stamp(status.st_mtime_ns, status.st_size, status.st_ino)
                    known = self._entries.get(path)
                    seen.add(path)
                    if known is not None and known.stamp == stamp and known.content is not None:
                        continue
                    content = read_entry(path)
                except OSError:
                    continue
                # A half written file has no content: the entry keeps its last one until the next
                # poll.
                if content is None and known is not None:
                    continue
                changed = changed or known is None or known.content != content
                key = entry_key(path.relative_to(base / bucket))
                self._entries[path] = _Entry(stamp, bucket, key, content)
        for path in self._entries.keys() - seen:
            del self._entries[path]
            changed = True
        return changed

    def _content(self) -> dict[str, dict[str, JsonObject]]:
        content: dict[str, dict[str, JsonObject]] = {bucket: {} for bucket in BUCKETS}
        for entry in self._entries.values():
            if entry.content is not None:
                content[entry.bucket][entry.key] = entry.content
        return content
