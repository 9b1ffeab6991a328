"""Reads the present blocks of pools with new feeds or missing events.

Each pool has a task of its own, so a worker that does not answer delays its own pool only. Reading
is bounded: a few pools at a time, each at most once per interval.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol

import msgspec

from wardrop.decoding import decode_json
from wardrop.dynamo.daemon_thread import run_in_thread
from wardrop.dynamo.discovery.fleet_view import Model, Role

log = logging.getLogger("wardrop.control")

_MAX_AT_ONCE = 2
"""Pools that are read at a time: each reading starts a process with Dynamo's runtime."""
_MAX_STATUS_BYTES = 1 << 30

Pool = tuple[str, Role]
"""Model and role."""

ReadBlocks = Callable[[str, int], Awaitable[str]]
"""Reads the blocks on the workers of an endpoint, given its block size."""


class _Worker(msgspec.Struct):
    needs_resync: bool = False
    tail_unchecked: bool = False


class _Pool(msgspec.Struct):
    role: Role
    workers: list[_Worker] = []


class _Model(msgspec.Struct):
    name: str
    pools: list[_Pool] = []


class _Status(msgspec.Struct):
    models: list[_Model] = []


_STATUS = msgspec.json.Decoder(_Status)


class BlockGateway(Protocol):
    """The methods of `wardrop._core.Gateway` that take blocks."""

    def begin_dump(self, model: str, role: str) -> object:
        """Keep the events that arrive while a dump of a pool is read."""
        ...

    def load_dump(self, model: str, role: str, dump_json: str) -> object:
        """Take over the blocks that a dump lists for the workers of a pool."""
        ...


class BlockRecovery:
    """Reads blocks into a gateway.

    Args:
        gateway: The gateway that takes the blocks.
        read_blocks: Reads the blocks of an endpoint; None where nothing can read them.
        interval_s: Shortest time between two readings of one pool.
        warn: Called with a text about blocks that could not be read.
    """

    def __init__(
        self,
        gateway: BlockGateway,
        read_blocks: ReadBlocks | None,
        interval_s: float,
        warn: Callable[[str], None],
    ) -> None:
        self.dumps = 0
        self.dumps_failed = 0
        self._gateway = gateway
        self._read_blocks = read_blocks
        self._interval_s = interval_s
        self._warn = warn
        self._unread: dict[Pool, str] = {}
        self._read_s: dict[Pool, float] = {}
        self._tasks: dict[Pool, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(_MAX_AT_ONCE)

    def ask(self, pool: Pool, reason: str) -> None:
        """Have a pool read, as soon as the interval allows."""
        if self._read_blocks is not None:
            self._unread.setdefault(pool, reason)

    def start_due(self, models: dict[str, Model], endpoints: Callable[[Pool], set[str]]) -> None:
        """Start to read the pools that are due.

        Args:
            models: Models of the gateway. A pool of any other model is forgotten.
            endpoints: Endpoints of the workers of a pool.
        """
        now_s = time.monotonic()
        for pool, reason in list(self._unread.items()):
            model = models.get(pool[0])
            if model is None:
                del self._unread[pool]
                continue
            due_s = self._read_s.get(pool, float("-inf")) + self._interval_s
            if pool in self._tasks or now_s < due_s:
                continue
            del self._unread[pool]
            self._read_s[pool] = now_s
            work = self._read(pool, model.block_size, sorted(endpoints(pool)), reason)
            task = asyncio.create_task(work, name=f"blocks of {pool[0]}, {pool[1]}")
            self._tasks[pool] = task
            task.add_done_callback(lambda _task, pool=pool: self._tasks.pop(pool, None))
        for pool in [pool for pool in self._read_s if pool[0] not in models]:
            del self._read_s[pool]

    async def stop(self) -> None:
        """Cancel all readings."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(
        self, pool: Pool, block_size: int, endpoints: Iterable[str], reason: str
    ) -> None:
        if self._read_blocks is None:
            return
        async with self._places:
            lists: list[str] = []
            try:
                # Events that arrive while the dump is read are kept, and joined with the dump.
                await run_in_thread(partial(self._gateway.begin_dump, *pool))
                for endpoint in endpoints:
                    text = await self._read_blocks(endpoint, block_size)
                    lists.append(text.strip()[1:-1])
                    log.info("read the blocks of %s (%s, %d bytes)", endpoint, reason, len(text))
                # One list for the pool: a worker that the list does not name holds no block.
                whole = f"[{','.join(part for part in lists if part.strip())}]"
                await run_in_thread(partial(self._gateway.load_dump, *pool, whole))
                self.dumps += 1
            except Exception as error:
                self.dumps_failed += 1
                self._unread.setdefault(pool, reason)  # read again after the interval
                model, role = pool
                self._warn(f"the blocks of {role} workers of {model} could not be read: {error}")


def resync_pools(status: str) -> set[Pool]:
    """Pools with a worker whose events are missing, or whose end of the stream is unchecked.

    Raises:
        DecodeError: The status has another form.
    """
    decoded = decode_json(_STATUS, status, "the gateway's status", _MAX_STATUS_BYTES)
    return {
        (model.name, pool.role)
        for model in decoded.models
        for pool in model.pools
        if any(worker.needs_resync or worker.tail_unchecked for worker in pool.workers)
    }
