"""Two questions to an HTTP server beside the router: the models of a frontend, a metrics page."""

from __future__ import annotations

from typing import Any

import aiohttp

_TIMEOUT_S = 5.0


async def models_served(url: str) -> set[str]:
    """Names of the models that a frontend lists; an empty set when it does not answer."""
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url.rstrip('/')}/v1/models") as answer,
        ):
            content: Any = await answer.json(content_type=None)
        return {str(model["id"]) for model in content["data"]}
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
        return set()


async def read_page(url: str) -> str:
    """The text of a page.

    Raises:
        OSError: The server does not answer within 5 s, or the connection fails.
    """
    timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url) as answer,
        ):
            return await answer.text()
    except (aiohttp.ClientError, TimeoutError) as error:
        raise OSError(f"{url}: {error}") from error
