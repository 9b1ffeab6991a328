"""Keeps the gateway's fleet equal to the fleet that discovery reports.

`GatewaySync.follow` takes over views, and `GatewaySync.repair` applies the changes from the
gateway's fleet to the newest view and retries what failed. A pass over the changes does no input
or output: files, frontends and dumps are asked by tasks of their own (`model_loader`,
`block_recovery`), and a pass uses what they have found so far. Neither is in the path of a request:
an error here makes placements worse, and never an answer.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from wardrop.dynamo.backoff import Backoff
from wardrop.dynamo.block_recovery import BlockRecovery, Pool, ReadBlocks, resync_pools
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
from wardrop.dynamo.gateway_json import feed_json, worker_json
from wardrop.dynamo.model_loader import ModelLoader

log = logging.getLogger("wardrop.control")

_REPAIR_INTERVAL_S = 0.25
_STATUS_INTERVAL_S = 1.0
"""Time between two readings of the gateway's status, which has about 1 MB for 1,000 workers."""
_SERVED_AGE_S = 1.0
"""Age up to which an answer of the frontends about their models counts."""
_MAX_REFUSED_RETRY_S = 10.0
_MAX_WARNINGS = 256
"""Texts remembered so that none is logged twice; beyond it all are forgotten."""
_MAX_WARNING_CHARACTERS = 500


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

    def begin_dump(self, model: str, role: str) -> object:
        """Keep the events of the pool's workers that need a dump, before the dump is read."""
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
        served_models: Names of the models that a frontend serves now. A worker that no frontend
            reaches is not routable, so a worker joins after its model is among them.
        read_blocks: Reads the blocks on the workers of an endpoint, given its block size, as a JSON
            list of stored events. None where nothing can read them.
        restore_index: Takes over the saved index of a pool, given the publishers of its feeds of KV
            events.
    """

    tokenizer_folder: Callable[[Model], Awaitable[Path]]
    served_models: Callable[[], Awaitable[set[str]]]
    read_blocks: ReadBlocks | None = None
    restore_index: Callable[[Pool, list[int]], Awaitable[None]] = _restore_nothing


@dataclass
class Counters:
    """Events since the start; no counter ever falls."""

    changes: int = 0
    refused: int = 0


@dataclass
class _Refused:
    """A change that the gateway refused, and when it is tried again."""

    backoff: Backoff
    retry_s: float = 0.0


@dataclass
class _Served:
    """The models that frontends serve, with the time of the answer."""

    names: set[str] = field(default_factory=set[str])
    at_s: float = float("-inf")

    def has(self, model: str, now_s: float) -> bool:
        """Whether a recent answer names a model."""
        return model in self.names and now_s - self.at_s <= _SERVED_AGE_S


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
        self._wake = asyncio.Event()
        self._models = ModelLoader(
            gateway, actions.tokenizer_folder, self._wake.set, self._warn_once
        )
        self.blocks = BlockRecovery(
            gateway, actions.read_blocks, resync_interval_s, self._warn_once
        )
        self._workers: dict[tuple[str, Role, int], Worker] = {}
        self._feeds: dict[int, Feed] = {}
        self._wanted = FleetView()
        self._restores: dict[Pool, asyncio.Task[None]] = {}
        self._served = _Served()
        self._asking: asyncio.Task[None] | None = None
        self._refused: dict[tuple[object, ...], _Refused] = {}
        self._status_read_s = float("-inf")
        self._warned: set[str] = set()

    @property
    def view(self) -> FleetView:
        """The fleet that the gateway has now."""
        return FleetView(dict(self._models.registered), dict(self._workers), dict(self._feeds))

    async def follow(self) -> None:
        """Take over views until cancelled."""
        async for view in self._source.views():
            for problem in view.problems:
                self._warn_once(problem)
            self._wanted = view
            self._apply_wanted()

    async def repair(self) -> None:
        """Apply what is due, retry what failed, and read missing blocks, until cancelled."""
        try:
            while True:
                try:
                    async with asyncio.timeout(_REPAIR_INTERVAL_S):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                self._wake.clear()
                self._apply_wanted()
                self._ask_for_resyncs()
                self.blocks.start_due(self._models.registered, self._endpoints)
        finally:
            await self._models.stop()
            await self.blocks.stop()

    def _apply_wanted(self) -> None:
        """Apply the changes that can be applied now. No input or output, no waiting."""
        now_s = time.monotonic()
        self._models.keep(self._wanted.models.keys())
        tried: set[tuple[object, ...]] = set()
        for change in diff(self.view, self._wanted):
            key = _key(change)
            tried.add(key)
            refused = self._refused.get(key)
            if refused is not None and now_s < refused.retry_s:
                continue
            try:
                if not self._is_due(change, now_s):
                    continue
                self._apply(change)
            except Exception as error:
                self.counters.refused += 1
                if refused is None:
                    refused = _Refused(Backoff(_REPAIR_INTERVAL_S, _MAX_REFUSED_RETRY_S))
                    self._refused[key] = refused
                refused.retry_s = now_s + refused.backoff.next_s()
                self._warn_once(f"the gateway refused {_name(change)}: {error}")
            else:
                self._refused.pop(key, None)
        for key in self._refused.keys() - tried:
            del self._refused[key]
        self._forget_restores()

    def _is_due(self, change: Change, now_s: float) -> bool:
        """Whether everything that a change depends on is there."""
        match change:
            case UpsertWorker(worker):
                model = self._wanted.models.get(worker.model)
                registered = self._models.registered.get(worker.model)
                if model is None or registered is None or registered.block_size != model.block_size:
                    return False
                if (worker.model, worker.role, worker.instance) in self._workers:
                    return True
                return self._is_served(worker.model, now_s)
            case Subscribe(feed):
                return self._has_worker(feed) and self._is_restored(feed)
            case _:
                return True

    def _is_served(self, model: str, now_s: float) -> bool:
        """Whether a frontend served a model a moment ago; asks in the background where unknown."""
        if self._served.has(model, now_s):
            return True
        # A model that the answer lacks may be listed the next moment.
        is_due = now_s - self._served.at_s >= _REPAIR_INTERVAL_S / 2
        if is_due and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask_frontends(), name="served models")
        return False

    async def _ask_frontends(self) -> None:
        try:
            names = await self._actions.served_models()
        except Exception as error:
            self._warn_once(f"no frontend says which models it serves: {error}")
            return
        self._served = _Served(names, time.monotonic())
        self._wake.set()

    def _has_worker(self, feed: Feed) -> bool:
        """Whether a worker of the feed is known: the gateway drops blocks of unknown workers."""
        return any(
            (worker.model, worker.role) == (feed.model, feed.role)
            and feed.instance in (None, worker.instance)
            for worker in self._workers.values()
        )

    def _is_restored(self, feed: Feed) -> bool:
        """Whether the saved index of the feed's pool is in the gateway, as far as there is one.

        An applied event cannot be undone, so the saved index must come before the first event.
        """
        pool = (feed.model, feed.role)
        if feed.topic != "kv-events":
            return True
        if pool not in self._restores:
            feeds = [f for f in self._wanted.feeds.values() if (f.model, f.role) == pool]
            publishers = [f.publisher_id for f in feeds if f.topic == "kv-events"]
            self._restores[pool] = asyncio.create_task(self._restore(pool, publishers))
        return self._restores[pool].done()

    def _forget_restores(self) -> None:
        """Forget the restored pools of models that left, so that a flood of models keeps nothing.

        A saved index is restored once, so a model that returns gets no old blocks.
        """
        names = self._wanted.models.keys()
        for pool in [pool for pool in self._restores if pool[0] not in names]:
            if self._restores[pool].done():
                del self._restores[pool]

    async def _restore(self, pool: Pool, publishers: list[int]) -> None:
        try:
            await self._actions.restore_index(pool, publishers)
        except Exception as error:
            self._warn_once(f"the saved index of {pool[0]}, {pool[1]} is not used: {error}")
        self._wake.set()

    def _apply(self, change: Change) -> None:
        gateway = self._gateway
        if not isinstance(change, UpsertModel):  # wanted at each pass until it is registered
            self.counters.changes += 1
        match change:
            case Unsubscribe(feed):
                del self._feeds[feed.publisher_id]
                gateway.unsubscribe(feed.publisher_id)
            case RemoveWorker(worker):
                del self._workers[worker.model, worker.role, worker.instance]
                gateway.remove_worker(worker.model, worker.role, worker.instance)
                log.info("%s worker %d of %s left", worker.role, worker.instance, worker.model)
            case RemoveModel(model):
                self._models.drop(model.name)
                log.info("model %s left", model.name)
            case UpsertModel(model):
                self._models.want(model)
            case UpsertWorker(worker):
                gateway.upsert_worker(worker_json(worker))
                self._workers[worker.model, worker.role, worker.instance] = worker
                log.info("%s worker %d of %s joined", worker.role, worker.instance, worker.model)
            case Subscribe(feed):
                gateway.subscribe(feed_json(feed))
                self._feeds[feed.publisher_id] = feed
                if feed.topic == "kv-events":
                    self.blocks.ask((feed.model, feed.role), "a new feed")

    def _ask_for_resyncs(self) -> None:
        """Have the pools read that miss events. Reads the gateway's status now and then."""
        now_s = time.monotonic()
        if self._actions.read_blocks is None or now_s - self._status_read_s < _STATUS_INTERVAL_S:
            return
        self._status_read_s = now_s
        for pool in resync_pools(self._gateway.status()):
            self.blocks.ask(pool, "events are missing")

    def _endpoints(self, pool: Pool) -> set[str]:
        return {
            worker.endpoint
            for worker in self._workers.values()
            if (worker.model, worker.role) == pool
        }

    def _warn_once(self, text: str) -> None:
        text = text[:_MAX_WARNING_CHARACTERS]
        if len(self._warned) >= _MAX_WARNINGS:
            self._warned.clear()
        if text not in self._warned:
            self._warned.add(text)
            log.warning("%s", text)


def _key(change: Change) -> tuple[object, ...]:
    """The identity of the thing that a change is about."""
    match change:
        case UpsertModel(model) | RemoveModel(model):
            return "model", model.name
        case UpsertWorker(worker) | RemoveWorker(worker):
            return "worker", worker.model, worker.role, worker.instance
        case Subscribe(feed) | Unsubscribe(feed):
            return "feed", feed.publisher_id


def _name(change: Change) -> str:
    match change:
        case UpsertModel(model) | RemoveModel(model):
            return f"model {model.name}"
        case UpsertWorker(worker) | RemoveWorker(worker):
            return f"worker {worker.instance} of {worker.model}"
        case Subscribe(feed) | Unsubscribe(feed):
            return f"feed {feed.publisher_id} ({feed.topic})"
