"""A discovery backend whose views the test gives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from wardrop.dynamo.discovery.fleet_view import FleetView


class Given:
    """A source whose views the test gives."""

    name = "given"
    last_error = None
    answered_unix_s = None

    def __init__(self) -> None:
        self.queue: asyncio.Queue[FleetView] = asyncio.Queue()

    async def views(self) -> AsyncIterator[FleetView]:
        while True:
            yield await self.queue.get()
