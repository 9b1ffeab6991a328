"""Keep the gateway's picture of the fleet true: views in, calls on the gateway out.

`Follower.follow` applies the changes from one view to the next; `Follower.repair` reads the present
blocks of pools whose feeds are new or have gaps, and retries what failed. Neither runs in a
request's path: an error here makes placements worse, never an answer.
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

from wardrop.dynamo.card_files import CardFilesError
from wardrop.dynamo.diff import (
    Change,
    RemoveModel,
    RemoveWorker,
    Subscribe,
    Unsubscribe,
    UpsertModel,
    UpsertWorker,
    diff,
)
from wardrop.dynamo.dump import DumpError
from wardrop.dynamo.source import Source
from wardrop.dynamo.view import Feed, Model, Role, View, Worker

log = logging.getLogger("wardrop.control")

_TICK_S = 0.25
_STATUS_S = 1.0
_FOLDER_RETRY_S = 30.0
_MAX_PROBLEMS = 256

Pool = tuple[str, Role]
Dump = Callable[[str, int], Awaitable[str]]
"""Endpoint and block size → JSON list of stored events."""
Folder = Callable[[Model], Awaitable[Path]]
Restore = Callable[[Pool, list[int]], Awaitable[None]]
"""Takes a pool's saved index over, given the publishers of its feeds of KV events."""
Served = Callable[[str], Awaitable[bool]]
"""Whether a frontend serves a model: a worker that no frontend can reach is not routable."""


class GatewayControl(Protocol):
    """The part of `wardrop._core.Gateway` that is driven from here."""

    def upsert_model(self, model_json: str) -> None:
        """Add a model or change one."""
        ...

    def remove_model(self, name: str) -> None:
        """Forget a model with its pools."""
        ...

    def upsert_worker(self, worker_json: str) -> None:
        """Add a worker or change its capacities."""
        ...

    def remove_worker(self, model: str, role: str, instance: int) -> None:
        """Forget a worker, its load and its blocks."""
        ...

    def subscribe(self, feed_json: str) -> None:
        """Read a feed."""
        ...

    def unsubscribe(self, publisher_id: int) -> None:
        """Read it no more."""
        ...

    def load_dump(self, model: str, role: str, dump_json: str) -> object:
        """Take over the blocks that the workers of a pool hold."""
        ...

    def status(self) -> str:
        """Workers, feeds and their gaps, as JSON."""
        ...


@dataclass
class Counters:
    """What happened so far; all only grow."""

    changes: int = 0
    refused: int = 0
    dumps: int = 0
    dumps_failed: int = 0


@dataclass
class _Applied:
    models: dict[str, Model] = field(default_factory=dict[str, Model])
    workers: dict[tuple[str, Role, int], Worker] = field(
        default_factory=dict[tuple[str, Role, int], Worker]
    )
    feeds: dict[int, Feed] = field(default_factory=dict[int, Feed])

    def view(self) -> View:
        return View(dict(self.models), dict(self.workers), dict(self.feeds))


class Follower:
    """Applies views to a gateway.

    Args:
        gateway: what is fed.
        source: where views come from.
        folder: model → local folder with tokenizer and template.
        dump: reads an endpoint's present blocks; None where there is no store to read them by.
        resync_interval_s: shortest time between two dumps of one pool.
        served: says whether a frontend serves a model yet; its workers wait for that.
        restore: takes over what was saved of a pool, before its first feed is read.
    """

    def __init__(
        self,
        gateway: GatewayControl,
        source: Source,
        folder: Folder,
        dump: Dump | None,
        resync_interval_s: float,
        served: Served,
        restore: Restore | None = None,
    ) -> None:
        self.counters = Counters()
        self._gateway = gateway
        self._source = source
        self._folder = folder
        self._dump = dump
        self._resync_interval_s = resync_interval_s
        self._served = served
        self._restore = restore
        self._restored: set[Pool] = set()
        self._applied = _Applied()
        self._wanted = View()
        self._unread: dict[Pool, str] = {}
        self._dumped_s: dict[Pool, float] = {}
        self._without_folder: dict[str, float] = {}
        self._asked_s = float("-inf")
        self._told: set[str] = set()
        self._lock = asyncio.Lock()

    @property
    def view(self) -> View:
        """What the gateway has been told."""
        return self._applied.view()

    async def follow(self) -> None:
        """Apply views until cancelled."""
        async for view in self._source.views():
            self._tell_problems(view)
            self._wanted = view
            await self._apply_wanted()

    async def repair(self) -> None:
        """Resync pools and retry what failed, until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            await self._apply_wanted()
            await self._retry_folders()
            for pool, reason in self._pools_to_read().items():
                await self._read_blocks(pool, reason)

    async def _apply_wanted(self) -> None:
        async with self._lock:
            served: dict[str, bool] = {}  # asked once a pass: workers of a model join together
            for change in diff(self._applied.view(), self._wanted):
                try:
                    if isinstance(change, UpsertWorker):
                        model = change.worker.model
                        if model not in served:
                            served[model] = await self._served(model)
                        if not served[model]:
                            continue
                    if isinstance(change, Subscribe) and not self._has_worker(change.feed):
                        continue
                    await self._apply(change)
                    self.counters.changes += 1
                except (ValueError, RuntimeError) as error:
                    self.counters.refused += 1
                    self._tell_once(f"the gateway refused {_name(change)}: {error}")

    def _has_worker(self, feed: Feed) -> bool:
        """A feed waits for its worker: blocks of a worker that is not known are dropped."""
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
                log.info("model %s is gone", model.name)
            case UpsertModel(model):
                await self._upsert_model(model)
                applied.models[model.name] = model
            case UpsertWorker(worker):
                gateway.upsert_worker(worker_json(worker))
                applied.workers[worker.model, worker.role, worker.instance] = worker
                log.info("%s worker %d of %s joined", worker.role, worker.instance, worker.model)
            case Subscribe(feed):
                await self._restore_before(feed)
                gateway.subscribe(feed_json(feed))
                applied.feeds[feed.publisher_id] = feed
                if feed.topic == "kv-events":
                    self._unread[feed.model, feed.role] = "a new feed"

    async def _restore_before(self, feed: Feed) -> None:
        """The saved index of the feed's pool, once: events can not be taken back."""
        pool = (feed.model, feed.role)
        if self._restore is None or feed.topic != "kv-events" or pool in self._restored:
            return
        self._restored.add(pool)
        feeds = [f for f in self._wanted.feeds.values() if (f.model, f.role) == pool]
        await self._restore(pool, [f.publisher_id for f in feeds if f.topic == "kv-events"])

    async def _upsert_model(self, model: Model) -> None:
        try:
            folder = await self._folder(model)
            self._without_folder.pop(model.name, None)
        except CardFilesError as error:
            folder = None
            self._without_folder[model.name] = time.monotonic()
            self._tell_once(f"no tokenizer for {model.name}, text is routed by load only: {error}")
        self._gateway.upsert_model(model_json(model, folder))
        log.info("model %s, %d tokens per block, files in %s", model.name, model.block_size, folder)

    async def _retry_folders(self) -> None:
        now_s = time.monotonic()
        for name, tried_s in list(self._without_folder.items()):
            if now_s - tried_s >= _FOLDER_RETRY_S and name in self._applied.models:
                async with self._lock:
                    await self._upsert_model(self._applied.models[name])

    def _pools_to_read(self) -> dict[Pool, str]:
        if self._dump is None:
            return {}
        wanted = dict(self._unread)
        now_s = time.monotonic()
        if now_s - self._asked_s >= _STATUS_S:  # a status of 1,000 workers is about 1 MB
            self._asked_s = now_s
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
        if model is None or self._dump is None:
            return
        self._dumped_s[pool] = time.monotonic()
        for endpoint in sorted(endpoints):
            try:
                text = await self._dump(endpoint, model.block_size)
                self._gateway.load_dump(pool[0], pool[1], text)
                self.counters.dumps += 1
                log.info("read the blocks of %s (%s, %d bytes)", endpoint, reason, len(text))
            except (DumpError, ValueError, RuntimeError) as error:
                self.counters.dumps_failed += 1
                self._unread[pool] = reason  # tried again after the interval
                self._tell_once(f"the blocks of {endpoint} could not be read: {error}")

    def _tell_problems(self, view: View) -> None:
        for problem in view.problems:
            self._tell_once(problem)

    def _tell_once(self, text: str) -> None:
        if len(self._told) >= _MAX_PROBLEMS:
            self._told.clear()
        if text not in self._told:
            self._told.add(text)
            log.warning("%s", text)


def model_json(model: Model, folder: Path | None) -> str:
    """A model as `Gateway.upsert_model` reads it."""
    return json.dumps(
        {
            "name": model.name,
            "folder": None if folder is None else str(folder),
            "block_size": model.block_size,
            "context_length": model.context_length,
            "loras": list(model.loras),
        }
    )


def worker_json(worker: Worker) -> str:
    """A worker as `Gateway.upsert_worker` reads it."""
    return json.dumps(
        {
            "model": worker.model,
            "role": worker.role,
            "instance": worker.instance,
            "dp_start": worker.dp_start,
            "dp_size": worker.dp_size,
            "total_kv_blocks": worker.total_kv_blocks,
            "max_num_seqs": worker.max_num_seqs,
            "max_num_batched_tokens": worker.max_num_batched_tokens,
        }
    )


def feed_json(feed: Feed) -> str:
    """A feed as `Gateway.subscribe` reads it."""
    return json.dumps(
        {
            "endpoint": feed.address,
            "topic": feed.topic,
            "model": feed.model,
            "role": feed.role,
            "publisher_id": feed.publisher_id,
            "instance": feed.instance,
        }
    )


def resync_pools(status: dict[str, Any]) -> set[Pool]:
    """Pools with a worker that the gateway's status marks as in need of a resync."""
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
