"""Asks the admin API of a running gateway: what `wardrop set`, `curves` and `audit` share."""

from __future__ import annotations

import contextlib
import json
import os
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

DEFAULT_URL = "http://127.0.0.1:8010"
_TIMEOUT_S = 10.0


class AdminError(RuntimeError):
    """The gateway does not answer, or refuses; the text is its own."""


def admin_url(given: str | None) -> str:
    """The address: as given, else `WARDROP_ADMIN_URL`, else the default port."""
    return (given or os.environ.get("WARDROP_ADMIN_URL") or DEFAULT_URL).rstrip("/")


def ask(url: str, path: str, body: object = None) -> Any:
    """GET, or POST when there is a body.

    Raises:
        AdminError: no answer, or a refusal.
    """
    data = None if body is None else json.dumps(body).encode()
    request = Request(url + path, data, {"content-type": "application/json"})
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            return json.load(answer)
    except HTTPError as error:
        with error:
            text = error.read().decode(errors="replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = json.loads(text)["error"]
        raise AdminError(text) from None
    except (URLError, OSError, ValueError) as error:
        raise AdminError(
            f"no admin API at {url}: {error}; give --url or WARDROP_ADMIN_URL (the gateway's log "
            "names it at start)"
        ) from None
