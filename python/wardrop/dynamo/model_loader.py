"""Registers models with the gateway: finds the tokenizer's folder and hands both over.

Where it stands: `GatewaySync` names the models, this module does what takes time. Each model has a
task of its own, so a metadata server that hangs delays no other model, and no worker that leaves.
A few models at a time are inside the gateway, so a flood of models leaves processors to the rest.
A model whose files cannot be found or read is registered without them: its workers take requests by
load, and the files are tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol
from weakref import WeakValueDictionary

from wardrop.dynamo.backoff import Backoff
from wardrop.dynamo.daemon_thread import run_in_thread
from wardrop.dynamo.discovery.fleet_view import Model
from wardrop.dynamo.gateway_json import model_json

log = logging.getLogger("wardrop.control")

_FOLDER_GRACE_S = 2.0
"""A new model waits so long for its files before it is registered without them."""
_FOLDER_RETRY_S = 30.0
_MAX_FOLDER_RETRY_S = 600.0
_REGISTER_RETRY_S = 0.25
_MAX_REGISTER_RETRY_S = 30.0
_CALLS_AT_ONCE = 4
"""Models that the gateway reads at one time: a reading is processor time, and each has a thread."""
MAX_MODELS = 1024
"""Most models that are registered or on their way. The gateway refuses more than this, too."""


class ModelGateway(Protocol):
    """The methods of `wardrop._core.Gateway` that change its models."""

    def upsert_model(self, model_json: str, /) -> object:
        """Add a model, or change the properties of a model."""
        ...

    def remove_model(self, name: str, /) -> object:
        """Remove a model with its pools."""
        ...


@dataclass(frozen=True)
class _Job:
    """The work on one model.

    Attributes:
        model: The properties that the gateway shall have.
        task: Registers the model, and ends when the gateway has the model with its files.
    """

    model: Model
    task: asyncio.Task[None]


@dataclass(frozen=True)
class _Found:
    """A folder with the files of a model, and what the files were found by."""

    checksums: tuple[str, ...]
    source_path: str | None
    folder: Path


class ModelLoader:
    """Brings models into the gateway.

    Args:
        gateway: The gateway to change.
        tokenizer_folder: Finds a local folder with the tokenizer and template of a model.
        changed: Called after each registration.
        warn: Called with a text about a model that could not be registered as it should.
    """

    def __init__(
        self,
        gateway: ModelGateway,
        tokenizer_folder: Callable[[Model], Awaitable[Path]],
        changed: Callable[[], None],
        warn: Callable[[str], None],
    ) -> None:
        self.registered: dict[str, Model] = {}
        """Models that the gateway has, with or without their files."""
        self._gateway = gateway
        self._tokenizer_folder = tokenizer_folder
        self._changed = changed
        self._warn = warn
        self._jobs: dict[str, _Job] = {}
        self._found: dict[str, _Found] = {}
        # Calls into the gateway for one model come one after the other, in the order of the asking.
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._calls = asyncio.Semaphore(_CALLS_AT_ONCE)
        self._removals: set[asyncio.Task[None]] = set()

    def want(self, model: Model) -> None:
        """Register a model with these properties, in the background.

        Raises:
            ValueError: There are as many models as there may be.
        """
        job = self._jobs.get(model.name)
        if job is None and len(self._jobs) >= MAX_MODELS:
            raise ValueError(
                f"got one more model than the {MAX_MODELS} that one router serves; take models out "
                "of the fleet, or give each group of models a router of its own"
            )
        if job is not None and job.model == model:
            return
        if job is not None:
            job.task.cancel()
        task = asyncio.create_task(self._bring_in(model), name=f"model {model.name}")
        self._jobs[model.name] = _Job(model, task)

    def keep(self, names: Collection[str]) -> None:
        """Give up the work on models that no caller wants and that the gateway does not have."""
        for name in self._jobs.keys() - names - self.registered.keys():
            self.drop(name)

    def drop(self, name: str) -> None:
        """Remove a model from the gateway, after the call that may be inside the gateway now."""
        self.registered.pop(name, None)
        self._found.pop(name, None)
        job = self._jobs.pop(name, None)
        if job is not None:
            job.task.cancel()
        if self._lock(name).locked():
            task = asyncio.create_task(self._remove_later(name), name=f"removal of model {name}")
            self._removals.add(task)
            task.add_done_callback(self._removals.discard)
        else:
            self._gateway.remove_model(name)

    async def stop(self) -> None:
        """Cancel all work in the background."""
        tasks = [job.task for job in self._jobs.values()]
        self._jobs.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._removals, return_exceptions=True)

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            self._locks[name] = lock = asyncio.Lock()
        return lock

    async def _remove_later(self, name: str) -> None:
        async with self._lock(name):
            self._gateway.remove_model(name)

    async def _bring_in(self, model: Model) -> None:
        retry = Backoff(_FOLDER_RETRY_S, _MAX_FOLDER_RETRY_S)
        while True:
            folder = await self._find(model)
            if await self._register(model, folder) and folder is not None:
                return
            await asyncio.sleep(retry.next_s())

    async def _find(self, model: Model) -> Path | None:
        """The folder of a model; None where it cannot be found.

        While the search for a new model takes long, the model is registered without files.
        """
        found = self._found.get(model.name)
        if (
            found is not None
            and found.checksums
            and (found.checksums, found.source_path) == (model.checksums, model.source_path)
        ):
            return found.folder
        search = asyncio.ensure_future(self._tokenizer_folder(model))
        try:
            if model.name not in self.registered:
                await asyncio.wait([search], timeout=_FOLDER_GRACE_S)
                if not search.done():
                    log.info(
                        "the files of %s take long: it is routed by load meanwhile", model.name
                    )
                    await self._register(model, None)
            folder = await search
        except Exception as error:
            self._warn(f"no tokenizer for {model.name}, text is routed by load only: {error}")
            return None
        finally:
            search.cancel()
        self._found[model.name] = _Found(model.checksums, model.source_path, folder)
        return folder

    async def _register(self, model: Model, folder: Path | None) -> bool:
        """Register a model, without its files where the gateway cannot read them.

        Returns:
            Whether the gateway took the folder that is given.
        """
        retry = Backoff(_REGISTER_RETRY_S, _MAX_REGISTER_RETRY_S)
        taken = True
        while True:
            try:
                await self._call(model, folder)
            except Exception as error:
                taken = False
                self._warn(f"the gateway refused model {model.name}: {error}")
                if folder is None:
                    await asyncio.sleep(retry.next_s())
                self._found.pop(model.name, None)
                folder = None
                continue
            self.registered[model.name] = model
            log.info(
                "model %s, %d tokens per block, files in %s", model.name, model.block_size, folder
            )
            self._changed()
            return taken

    async def _call(self, model: Model, folder: Path | None) -> None:
        """Hand a model to the gateway in a thread: reading a large tokenizer takes seconds.

        A cancelled call keeps running in its thread; this method ends after the thread has ended.
        """
        text = model_json(model, folder)
        async with self._lock(model.name), self._calls:
            call = asyncio.ensure_future(run_in_thread(partial(self._gateway.upsert_model, text)))
            try:
                await asyncio.shield(call)
            except asyncio.CancelledError:
                await asyncio.wait([call])
                raise
