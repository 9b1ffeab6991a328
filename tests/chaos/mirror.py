"""A copy of Dynamo's file store for the router alone, with proxies in place of the event feeds.

Dynamo's own processes keep the true store. Faults of the copy (bad entries, invented models, a
folder that is away) therefore hit the router and nothing else. Links keep the files' times, by
which Dynamo's lease of a dead worker ends.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

from tests.chaos.severable import SeverableProxy

FOLLOWED_TOPICS = ("kv-events", "forward-pass-metrics")
_PERIOD_S = 0.1


class StoreMirror:
    """Keeps `root` like `source`, and a proxy for each feed that the router follows.

    Args:
        source: Root of Dynamo's store.
        root: Root of the copy.

    Attributes:
        feeds: Proxy by name of the entry in the bucket `event_channels`.
    """

    def __init__(self, source: Path, root: Path) -> None:
        self.source, self.root = source, root
        self.feeds: dict[str, SeverableProxy] = {}
        self._copied: dict[Path, tuple[int, int]] = {}
        self._task: asyncio.Task[None] | None = None
        self._away = root.with_name(root.name + "-away")

    async def start(self) -> StoreMirror:
        """Copy once, then follow the source."""
        (self.root / "v1").mkdir(parents=True, exist_ok=True)
        await self._copy()
        self._task = asyncio.create_task(self._follow())
        return self

    async def stop(self) -> None:
        """Stop following, and close the feeds' proxies."""
        if self._task is not None:
            self._task.cancel()
        for proxy in self.feeds.values():
            await proxy.stop()

    def put(self, bucket: str, name: str, content: bytes) -> Path:
        """Write an entry that the source does not have.

        Raises:
            FileNotFoundError: The copy's folder is away.
        """
        path = self.root / "v1" / bucket / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path

    def latest(self, bucket: str, without: str) -> dict[str, Any]:
        """The entry of the source that was renewed last, which is a living worker's.

        Args:
            bucket: Bucket.
            without: Name of an entry that does not count.

        Raises:
            FileNotFoundError: The bucket has no entry that counts.
        """
        newest_ns, content = -1, b""
        for path in (self.source / "v1" / bucket).glob("[!.]*"):
            try:
                written_ns = path.stat().st_mtime_ns
                if path.name != without and written_ns > newest_ns:
                    newest_ns, content = written_ns, path.read_bytes()
            except FileNotFoundError:
                continue  # its worker has ended since the folder was listed
        if newest_ns < 0:
            raise FileNotFoundError(f"no entry in {bucket}")
        return json.loads(content)

    def hide(self) -> None:
        """Take the copy's folder away."""
        (self.root / "v1").rename(self._away)

    def show(self) -> None:
        """Put the folder back, in place of an empty one that a process made meanwhile.

        The router's reader of blocks is a Dynamo process, which makes the folder of its store.
        """
        shutil.rmtree(self.root / "v1", ignore_errors=True)
        self._away.rename(self.root / "v1")

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_PERIOD_S)
            if (self.root / "v1").is_dir():
                await self._copy()

    async def _copy(self) -> None:
        seen: set[Path] = set()
        for path in sorted((self.source / "v1").rglob("*")):
            if path.name.startswith(".") or path.is_dir():
                continue
            relative = path.relative_to(self.source)
            try:
                status = path.stat()
                stamp = (status.st_ino, status.st_mtime_ns)
                seen.add(relative)
                if self._copied.get(relative) == stamp:
                    continue
                await self._put_copy(path, self.root / relative)
                self._copied[relative] = stamp
            except (OSError, ValueError):
                continue
        for relative in self._copied.keys() - seen:
            if not (self.root / "v1").is_dir():
                return  # the copy's folder is away with the entry in it
            (self.root / relative).unlink(missing_ok=True)
            del self._copied[relative]
            proxy = self.feeds.pop(relative.name, None)
            if proxy is not None:
                await proxy.stop()

    async def _put_copy(self, source: Path, target: Path) -> None:
        target.parent.mkdir(exist_ok=True)  # an error while the copy's folder is away
        content: bytes | None = None
        if "event_channels" in source.parts:
            content = await self._through_proxy(source)
        temporary = target.with_name("." + target.name)
        temporary.unlink(missing_ok=True)
        if content is None:
            os.link(source, temporary)
        else:
            temporary.write_bytes(content)
            status = source.stat()
            os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
        temporary.replace(target)

    async def _through_proxy(self, source: Path) -> bytes | None:
        """The entry of a followed feed, with the address of its proxy; None for another feed."""
        entry = json.loads(source.read_bytes())
        if entry.get("topic") not in FOLLOWED_TOPICS:
            return None
        config = entry["transport"]["config"]
        proxy = self.feeds.get(source.name)
        if proxy is None:
            host, _, port = config["endpoint"].removeprefix("tcp://").rpartition(":")
            proxy = await SeverableProxy((host, int(port))).start()
            self.feeds[source.name] = proxy
        config["endpoint"] = f"tcp://127.0.0.1:{proxy.port}"
        return json.dumps(entry).encode()
