"""Client of a running router's admin API, and the exit codes of the commands that use it."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Generator
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import typer

from wardrop.config.fields import require_address

DEFAULT_URL = "http://127.0.0.1:8010"
URL_HELP = "admin API of the router [env: WARDROP_ADMIN_URL] [default: http://127.0.0.1:8010]"
_TIMEOUT_S = 10.0


class AdminError(RuntimeError):
    """The admin API does not answer, or fails."""


class RefusedError(AdminError):
    """The admin API refuses a request as wrong; the text is the API's own."""


def admin_url(given: str | None) -> str:
    """Address of the admin API: the given one, else `WARDROP_ADMIN_URL`, else the default port.

    Raises:
        ConfigError: The address is not `http://HOST:PORT` or `https://HOST:PORT`.
    """
    url = given or os.environ.get("WARDROP_ADMIN_URL") or DEFAULT_URL
    require_address("--url", url)
    return url.rstrip("/")


def ask(url: str, path: str, body: object = None) -> Any:
    """Send a GET, or a POST where there is a body, and return the decoded answer.

    Args:
        url: Address of the admin API, without a trailing slash.
        path: Path with its query.
        body: Value to send as JSON; None for a GET.

    Raises:
        RefusedError: The API answers with status 400.
        AdminError: The API does not answer, or answers with another error.
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
        raise (RefusedError if error.code == 400 else AdminError)(text) from None
    except (URLError, OSError, ValueError) as error:
        raise AdminError(
            f"no admin API answers at {url}: {error}; give --url or WARDROP_ADMIN_URL (the router "
            "logs the address at start)"
        ) from None


@contextlib.contextmanager
def exit_on_error(command: str) -> Generator[None]:
    """Turn an error into one line on standard error and an exit code.

    Exit code 2: the command line, a file that it names, or a value is wrong. Exit code 1: the
    router does not answer, or cannot do what is asked.

    Args:
        command: Name of the subcommand, for the line.
    """
    try:
        yield
    except (RefusedError, ValueError, OSError) as error:
        typer.echo(f"wardrop {command}: {error}", err=True)
        raise typer.Exit(2) from None
    except RuntimeError as error:
        typer.echo(f"wardrop {command}: {error}", err=True)
        raise typer.Exit(1) from None
