"""Two questions to an HTTP server beside the router: the models of a frontend, a metrics page."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import aiohttp
import msgspec

from wardrop.decoding import decode_json

_TIMEOUT_S = 5.0
_MAX_ANSWER_BYTES = 16 << 20


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_MODELS = msgspec.json.Decoder(_Models)


async def models_served(url: str) -> set[str]:
    """Names of the models that a frontend lists; an empty set when it does not answer."""
    address = f"{url.rstrip('/')}/v1/models"
    try:
        return {
            model.id
            for model in decode_json(_MODELS, await _read(address), address, _MAX_ANSWER_BYTES).data
        }
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return set()


async def models_served_by_any(urls: Iterable[str]) -> set[str]:
    """Names of the models that at least one frontend lists. All frontends are asked at once."""
    answers = await asyncio.gather(*(models_served(url) for url in urls))
    return set[str]().union(*answers)


async def read_page(url: str) -> str:
    """The text of a page.

    Raises:
        OSError: The server does not answer within 5 s, or the connection fails.
    """
    try:
        return (await _read(url)).decode(errors="replace")
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(f"{url}: {error}") from error


async def _read(url: str) -> bytes:
    """Body of an answer, up to a limit.

    Raises:
        OSError: The answer is larger than the limit.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url) as answer:
        text = bytearray()
        async for chunk in answer.content.iter_chunked(1 << 16):
            text += chunk
            if len(text) > _MAX_ANSWER_BYTES:
                raise OSError(f"{url}: the answer is larger than {_MAX_ANSWER_BYTES} bytes")
        return bytes(text)
