"""Where a view comes from: one interface, three backends, chosen from the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Protocol

from wardrop.dynamo.store import BUCKETS, JsonObject, entry_key, read_entry
from wardrop.dynamo.view import View, read_view


class Source(Protocol):
    """Gives the present view, and then one whenever it may have changed.

    A backend that can not be reached keeps what it said last and says so in `trouble`: an outage
    of discovery must not empty the fleet.
    """

    @property
    def name(self) -> str:
        """What it reads, for logs."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the last reading failed; None while it works."""
        ...

    def views(self) -> AsyncIterator[View]:
        """Views without end; the first one at once, even when empty."""
        ...


class FileSource:
    """Polls Dynamo's file store; a file is read again only when its size or time changed.

    Cost of a poll without changes: one `stat` per entry (about 2 µs each).
    """

    def __init__(self, root: Path, poll_interval_s: float) -> None:
        self.root = root
        self._poll_interval_s = poll_interval_s
        self._read: dict[Path, tuple[tuple[int, int, int], str, str, JsonObject | None]] = {}
        self.trouble: str | None = None

    @property
    def name(self) -> str:
        """The folder."""
        return f"file store {self.root}"

    async def views(self) -> AsyncIterator[View]:
        """A view at once, then one after each change."""
        first = True
        while True:
            if self._poll() or first:
                first = False
                yield read_view(self._snapshot())
            await asyncio.sleep(self._poll_interval_s)

    def _poll(self) -> bool:
        """Bring `_read` up to date; True when a content changed."""
        seen: set[Path] = set()
        changed = False
        base = self.root / "v1"
        self.trouble = None if base.is_dir() else f"{base} does not exist (yet)"
        for bucket in BUCKETS:
            for path in (base / bucket).rglob("*"):
                try:
                    status = path.stat()
                    if path.is_dir() or path.name.startswith("."):
                        continue
                    stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
                    known = self._read.get(path)
                    seen.add(path)
                    if known is not None and known[0] == stamp and known[3] is not None:
                        continue
                    content = read_entry(path)
                except OSError:
                    continue
                key = entry_key(path.relative_to(base / bucket))
                # A half written file gives no content: keep what it said before, look again.
                if content is None and known is not None:
                    continue
                changed = changed or known is None or known[3] != content
                self._read[path] = (stamp, bucket, key, content)
        for path in self._read.keys() - seen:
            del self._read[path]
            changed = True
        return changed

    def _snapshot(self) -> dict[str, dict[str, JsonObject]]:
        snapshot: dict[str, dict[str, JsonObject]] = {bucket: {} for bucket in BUCKETS}
        for _, bucket, key, content in self._read.values():
            if content is not None:
                snapshot[bucket][key] = content
        return snapshot
