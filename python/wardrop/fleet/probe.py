"""Asks one engine, at an interval, for its models and its metrics.

An engine that is busy may miss a probe. Only `MISSED_MAX` misses in a row make it unreachable, and
its next answer makes it reachable again. An engine that never answered is not known, so nothing is
routed to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
import msgspec

from wardrop.decoding import decode_json
from wardrop.fleet.engine_metrics import MAX_PAGE_BYTES, EngineMetrics, read_metrics

MISSED_MAX = 3
_TIMEOUT_S = 2.0
_MODELS_EVERY_S = 5.0
"""Adapters are loaded and unloaded while an engine runs."""
_MAX_MODELS_BYTES = 4 << 20
_MAX_NAMES = 4096


class _Model(msgspec.Struct):
    """An entry of `/v1/models`. An adapter names its base model as `parent`."""

    id: str
    parent: str | None = None
    max_model_len: int | None = None


class _Models(msgspec.Struct):
    """The answer of `/v1/models`."""

    data: list[_Model]


_MODELS = msgspec.json.Decoder(_Models)


@dataclass(frozen=True)
class Served:
    """The models of one engine.

    Attributes:
        names: Names of the base model, the first one first.
        loras: Names of adapters.
        context_length: Longest prompt plus output, in tokens; None when not reported.
    """

    names: tuple[str, ...]
    loras: tuple[str, ...] = ()
    context_length: int | None = None


class Probe:
    """Follows one engine.

    Args:
        url: Base address of the HTTP server.
        interval_s: Time between two readings of the metrics.
        changed: Called after each answer that changes what is known, and when the engine becomes
            unreachable.
        server_name: Name that the certificate must have; None for the host of the URL.
    """

    def __init__(
        self,
        url: str,
        interval_s: float,
        changed: Callable[[], None],
        server_name: str | None = None,
    ) -> None:
        self.url = url
        self._server_name = server_name
        self.served: Served | None = None
        """None until the engine has answered."""
        self.metrics = EngineMetrics()
        self.is_reachable = False
        self.error = "it has not answered yet"
        """Why the last probe failed; empty after an answer."""
        self._interval_s = interval_s
        self._changed = changed
        self._missed = 0
        self._models_at_s = float("-inf")

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Probe until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            await self.probe(session)
            await asyncio.sleep(max(self._interval_s - (loop.time() - started_s), 0.05))

    async def probe(self, session: aiohttp.ClientSession) -> None:
        """Probe once."""
        before = (self.served, self.metrics.block_size, self.metrics.kv_blocks, self.is_reachable)
        start = self.metrics.started_s
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                await self._ask(session)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            self._missed += 1
            self.error = str(error) or type(error).__name__
            if self._missed >= MISSED_MAX:
                self.is_reachable = False
        else:
            self._missed = 0
            self.error = ""
            self.is_reachable = True
        after = (self.served, self.metrics.block_size, self.metrics.kv_blocks, self.is_reachable)
        if after != before or self.metrics.started_s != start:
            self._changed()

    async def _ask(self, session: aiohttp.ClientSession) -> None:
        now_s = asyncio.get_running_loop().time()
        served = self.served
        if served is None or self._missed or now_s - self._models_at_s >= _MODELS_EVERY_S:
            page = await self._get(session, "/v1/models", _MAX_MODELS_BYTES)
            if page is None:
                raise ValueError("it has no /v1/models, so it is no OpenAI server")
            served = _served(page, self.url)
            self._models_at_s = now_s
        page = await self._get(session, "/metrics", MAX_PAGE_BYTES)
        self.metrics = read_metrics(page.decode(errors="replace")) if page else EngineMetrics()
        # The engine is known only as a whole: its models without its block size would be wrong.
        self.served = served

    async def _get(
        self, session: aiohttp.ClientSession, path: str, limit_bytes: int
    ) -> bytes | None:
        """The body of a page; None where the server has no such page."""
        url = f"{self.url}{path}"
        async with session.get(url, server_hostname=self._server_name) as answer:
            if answer.status == 404:
                return None
            if answer.status != 200:
                raise ValueError(f"got status {answer.status} of {url}, expected 200")
            content = bytearray()
            async for chunk in answer.content.iter_chunked(1 << 16):
                content += chunk
                if len(content) > limit_bytes:
                    raise ValueError(f"got more than {limit_bytes} bytes of {url}")
            return bytes(content)


def _served(page: bytes, url: str) -> Served:
    entries = decode_json(_MODELS, page, f"{url}/v1/models", _MAX_MODELS_BYTES).data[:_MAX_NAMES]
    bases = [entry for entry in entries if entry.parent is None]
    if not bases:
        raise ValueError(f"{url}/v1/models lists no base model")
    loras = tuple(sorted({entry.id for entry in entries if entry.parent is not None}))
    lengths = [entry.max_model_len for entry in bases if entry.max_model_len]
    return Served(
        tuple(dict.fromkeys(entry.id for entry in bases)), loras, min(lengths, default=None)
    )
