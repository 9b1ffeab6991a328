"""Keeps the gateway's fleet equal to the fleet that discovery reports.

`GatewaySync.follow` applies the changes from one fleet view to the next. `GatewaySync.repair` reads
the present blocks of pools with new feeds or missing events, and retries what failed. Neither is in
the path of a request: an error here makes placements worse, and never an answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

from wardrop.dynamo.block_dump import DumpError
from wardrop.dynamo.discovery.changes import (
    Change,
    RemoveModel,
    RemoveWorker,
    Subscribe,
    Unsubscribe,
    UpsertModel,
    UpsertWorker,
    diff,
)
from wardrop.dynamo.discovery.fleet_view import Feed, FleetView, Model, Role, Worker
from wardrop.dynamo.discovery.source import Source
from wardrop.dynamo.gateway_json import feed_json, model_json, worker_json
from wardrop.dynamo.tokenizer_files import TokenizerFilesError

log = logging.getLogger("wardrop.control")

_REPAIR_INTERVAL_S = 0.25
_STATUS_INTERVAL_S = 1.0
"""Time between two readings of the gateway's status, which has about 1 MB for 1,000 workers."""
_FOLDER_RETRY_S = 30.0
_MAX_WARNINGS = 256
"""Texts remembered so that none is logged twice; beyond it all are forgotten."""

Pool = tuple[str, Role]
"""Model and role."""


class FleetGateway(Protocol):
    """The methods of `wardrop._core.Gateway` that change and read its fleet."""

    def upsert_model(self, model_json: str, /) -> object:
        """Add a model, or change the properties of a model."""
        ...

    def remove_model(self, name: str, /) -> object:
        """Remove a model with its pools."""
        ...

    def upsert_worker(self, worker_json: str, /) -> object:
        """Add a worker, or change the capacities of a worker."""
        ...

    def remove_worker(self, model: str, role: str, instance: int) -> object:
        """Remove a worker with its load and its blocks."""
        ...

    def subscribe(self, feed_json: str, /) -> object:
        """Start to read a feed."""
        ...

    def unsubscribe(self, publisher_id: int, /) -> object:
        """Stop reading a feed."""
        ...

    def load_dump(self, model: str, role: str, dump_json: str) -> object:
        """Take over the blocks that a dump lists for the workers of a pool."""
        ...

    def status(self) -> str:
        """Workers, feeds and missing events, as JSON."""
        ...


async def _restore_nothing(_pool: Pool, _publishers: list[int]) -> None:
    return


@dataclass(frozen=True)
class Actions:
    """What the synchronisation needs from the rest of the process.

    Attributes:
        tokenizer_folder: Finds a local folder with the tokenizer and template of a model.
        is_served: Says whether a frontend serves a model. A worker that no frontend reaches is not
            routable, so workers join after it is true.
        read_blocks: Reads the blocks on the workers of an endpoint, given its block size, as a JSON
            list of stored events. None where nothing can read them.
        restore_index: Takes over the saved index of a pool, given the publishers of its feeds of KV
            events.
    """

    tokenizer_folder: Callable[[Model], Awaitable[Path]]
    is_served: Callable[[str], Awaitable[bool]]
    read_blocks: Callable[[str, int], Awaitable[str]] | None = None
    restore_index: Callable[[Pool, list[int]], Awaitable[None]] = _restore_nothing


@dataclass
class Counters:
    """Events since the start; no counter ever falls."""

    changes: int = 0
    refused: int = 0
    dumps: int = 0
    dumps_failed: int = 0


@dataclass
class _Applied:
    """The fleet that the gateway has."""

    models: dict[str, Model] = field(default_factory=dict[str, Model])
    workers: dict[tuple[str, Role, int], Worker] = field(
        default_factory=dict[tuple[str, Role, int], Worker]
    )
    feeds: dict[int, Feed] = field(default_factory=dict[int, Feed])

    def view(self) -> FleetView:
        return FleetView(dict(self.models), dict(self.workers), dict(self.feeds))


class GatewaySync:
    """Applies fleet views to a gateway.

    Args:
        gateway: The gateway to change.
        source: The discovery backend.
        actions: What the synchronisation needs from the rest of the process.
        resync_interval_s: Shortest time between two dumps of one pool.
    """

    def __init__(
        self, gateway: FleetGateway, source: Source, actions: Actions, resync_interval_s: float
    ) -> None:
        self.counters = Counters()
        self._gateway = gateway
        self._source = source
        self._actions = actions
        self._resync_interval_s = resync_interval_s
        self._restored: set[Pool] = set()
        self._applied = _Applied()
        self._wanted = FleetView()
        self._unread: dict[Pool, str] = {}
        self._dumped_s: dict[Pool, float] = {}
        self._without_folder: dict[str, float] = {}
        self._status_read_s = float("-inf")
        self._warned: set[str] = set()
        self._lock = asyncio.Lock()

    @property
    def view(self) -> FleetView:
        """The fleet that the gateway has now."""
        return self._applied.view()

    async def follow(self) -> None:
        """Apply views until cancelled."""
        async for view in self._source.views():
            for problem in view.problems:
                self._warn_once(problem)
            self._wanted = view
            await self._apply_wanted()

    async def repair(self) -> None:
        """Read blocks of pools that miss events and retry what failed, until cancelled."""
        while True:
            await asyncio.sleep(_REPAIR_INTERVAL_S)
            await self._apply_wanted()
            await self._retry_folders()
            for pool, reason in self._pools_to_read().items():
                await self._read_blocks(pool, reason)

    async def _apply_wanted(self) -> None:
        async with self._lock:
            # Asked once per pass and model, so that the workers of a model join together.
            served: dict[str, bool] = {}
            for change in diff(self._applied.view(), self._wanted):
                try:
                    if isinstance(change, UpsertWorker):
                        model = change.worker.model
                        if model not in served:
                            served[model] = await self._actions.is_served(model)
                        if not served[model]:
                            continue
                    if isinstance(change, Subscribe) and not self._has_worker(change.feed):
                        continue
                    await self._apply(change)
                    self.counters.changes += 1
                except (ValueError, RuntimeError) as error:
                    self.counters.refused += 1
                    self._warn_once(f"the gateway refused {_name(change)}: {error}")

    def _has_worker(self, feed: Feed) -> bool:
        """Whether a worker of the feed is known: the gateway drops blocks of unknown workers."""
        return any(
            (worker.model, worker.role) == (feed.model, feed.role)
            and feed.instance in (None, worker.instance)
            for worker in self._applied.workers.values()
        )

    async def _apply(self, change: Change) -> None:
        applied, gateway = self._applied, self._gateway
        match change:
            case Unsubscribe(feed):
                del applied.feeds[feed.publisher_id]
                gateway.unsubscribe(feed.publisher_id)
            case RemoveWorker(worker):
                del applied.workers[worker.model, worker.role, worker.instance]
                gateway.remove_worker(worker.model, worker.role, worker.instance)
                log.info("%s worker %d of %s left", worker.role, worker.instance, worker.model)
            case RemoveModel(model):
                del applied.models[model.name]
                self._without_folder.pop(model.name, None)
                gateway.remove_model(model.name)
                log.info("model %s left", model.name)
            case UpsertModel(model):
                await self._upsert_model(model)
                applied.models[model.name] = model
            case UpsertWorker(worker):
                gateway.upsert_worker(worker_json(worker))
                applied.workers[worker.model, worker.role, worker.instance] = worker
                log.info("%s worker %d of %s joined", worker.role, worker.instance, worker.model)
            case Subscribe(feed):
                await self._restore_index(feed)
                gateway.subscribe(feed_json(feed))
                applied.feeds[feed.publisher_id] = feed
                if feed.topic == "kv-events":
                    self._unread[feed.model, feed.role] = "a new feed"

    async def _restore_index(self, feed: Feed) -> None:
        """Restore the saved index of the feed's pool, once, before the pool's first event.

        An applied event cannot be undone, so the saved index must come first.
        """
        pool = (feed.model, feed.role)
        if feed.topic != "kv-events" or pool in self._restored:
            return
        self._restored.add(pool)
        feeds = [f for f in self._wanted.feeds.values() if (f.model, f.role) == pool]
        publishers = [f.publisher_id for f in feeds if f.topic == "kv-events"]
        await self._actions.restore_index(pool, publishers)

    async def _upsert_model(self, model: Model) -> None:
        try:
            folder = await self._actions.tokenizer_folder(model)
            self._without_folder.pop(model.name, None)
        except TokenizerFilesError as error:
            folder = None
            self._without_folder[model.name] = time.monotonic()
            self._warn_once(f"no tokenizer for {model.name}, text is routed by load only: {error}")
        self._gateway.upsert_model(model_json(model, folder))
        log.info("model %s, %d tokens per block, files in %s", model.name, model.block_size, folder)

    async def _retry_folders(self) -> None:
        now_s = time.monotonic()
        for name, tried_s in list(self._without_folder.items()):
            if now_s - tried_s >= _FOLDER_RETRY_S and name in self._applied.models:
                async with self._lock:
                    await self._upsert_model(self._applied.models[name])

    def _pools_to_read(self) -> dict[Pool, str]:
        """Pools whose blocks must be read now, each with the reason."""
        if self._actions.read_blocks is None:
            return {}
        wanted = dict(self._unread)
        now_s = time.monotonic()
        if now_s - self._status_read_s >= _STATUS_INTERVAL_S:
            self._status_read_s = now_s
            for pool in resync_pools(json.loads(self._gateway.status())):
                wanted.setdefault(pool, "events are missing")
        return {
            pool: reason
            for pool, reason in wanted.items()
            if now_s - self._dumped_s.get(pool, float("-inf")) >= self._resync_interval_s
        }

    async def _read_blocks(self, pool: Pool, reason: str) -> None:
        model = self._applied.models.get(pool[0])
        endpoints = {
            worker.endpoint
            for worker in self._applied.workers.values()
            if (worker.model, worker.role) == pool
        }
        self._unread.pop(pool, None)
        if model is None or self._actions.read_blocks is None:
            return
        self._dumped_s[pool] = time.monotonic()
        for endpoint in sorted(endpoints):
            try:
                text = await self._actions.read_blocks(endpoint, model.block_size)
                self._gateway.load_dump(pool[0], pool[1], text)
                self.counters.dumps += 1
                log.info("read the blocks of %s (%s, %d bytes)", endpoint, reason, len(text))
            except (DumpError, ValueError, RuntimeError) as error:
                self.counters.dumps_failed += 1
                self._unread[pool] = reason  # read again after the resync interval
                self._warn_once(f"the blocks of {endpoint} could not be read: {error}")

    def _warn_once(self, text: str) -> None:
        if len(self._warned) >= _MAX_WARNINGS:
            self._warned.clear()
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)


def resync_pools(status: dict[str, Any]) -> set[Pool]:
    """Pools with a worker that the gateway's status marks with `needs_resync`."""
    found: set[Pool] = set()
    for model in cast(list[dict[str, Any]], status.get("models", [])):
        for pool in cast(list[dict[str, Any]], model.get("pools", [])):
            workers = cast(list[dict[str, Any]], pool.get("workers", []))
            if any(worker.get("needs_resync") for worker in workers):
                found.add((str(model["name"]), cast(Role, pool["role"])))
    return found


def _name(change: Change) -> str:
    match change:
        case UpsertModel(model) | RemoveModel(model):
            return f"model {model.name}"
        case UpsertWorker(worker) | RemoveWorker(worker):
            return f"worker {worker.instance} of {worker.model}"
        case Subscribe(feed) | Unsubscribe(feed):
            return f"feed {feed.publisher_id} ({feed.topic})"
