"""Requests of the doctor to a router: facts from the admin port, canaries to the public port."""

from __future__ import annotations

import json
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import msgspec

import wardrop
from wardrop.commands.admin_client import AdminError, ask
from wardrop.doctor.canary import CanaryError
from wardrop.doctor.facts import Facts, Health, Status, health_of, status_of, wiring_of

_TIMEOUT_S = 30.0
_SHOWN_CHARACTERS = 200


class RouterClient:
    """A running router.

    Args:
        admin: Address of the admin API, without a trailing slash.
        public: Address of the public port; None takes the address that the router reports.
    """

    def __init__(self, admin: str, public: str | None = None) -> None:
        self.admin = admin
        self._public = public

    def facts(self) -> Facts:
        """The facts that the checks read.

        Raises:
            AdminError: The admin API does not answer, or is of another version.
        """
        asked_s = time.time()
        try:
            wiring = wiring_of(ask(self.admin, "/v1/wiring"))
        except msgspec.ValidationError as error:
            raise AdminError(f"GET /v1/wiring has another form: {error}") from None
        answered_s = time.time()
        # The answer was made between the two, so only a difference beyond them is a skew.
        skew_s = max(0.0, wiring.at_s - answered_s) - max(0.0, asked_s - wiring.at_s)
        return Facts(self.status(), wiring, self._health(), wardrop.__version__, skew_s)

    def status(self) -> Status:
        """The present status."""
        try:
            status = status_of(ask(self.admin, "/v1/status"))
        except msgspec.ValidationError as error:
            raise AdminError(f"GET /v1/status has another form: {error}") from None
        if self._public is None and status.address is not None:
            self._public = f"http://{status.address.replace('0.0.0.0', '127.0.0.1')}"
        return status

    def receipt(self, request_id: str) -> dict[str, Any] | None:
        """The receipt of a request; None without one."""
        try:
            return ask(self.admin, f"/v1/receipts/{quote(request_id, safe='')}")
        except AdminError:
            return None

    def complete(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Send a completion; the request id and the answer.

        Raises:
            CanaryError: The router does not answer with status 200.
        """
        headers = {"content-type": "application/json"}
        request = Request(f"{self._public}/v1/completions", json.dumps(body).encode(), headers)
        try:
            with urlopen(request, timeout=_TIMEOUT_S) as answer:
                return answer.headers["x-request-id"] or "", json.load(answer)
        except HTTPError as error:
            with error:
                text = error.read(_SHOWN_CHARACTERS).decode(errors="replace")
            raise CanaryError(f"got status {error.code}, expected 200: {text}") from None
        except (URLError, OSError, ValueError) as error:
            raise CanaryError(f"no answer at {self._public}: {error}") from None

    def _health(self) -> Health | None:
        try:
            with urlopen(f"{self._public}/health", timeout=_TIMEOUT_S) as answer:
                return health_of(json.load(answer))
        except HTTPError as error:
            with error:
                return _health_of_error(error.read())
        except (URLError, OSError, ValueError):
            return None


def _health_of_error(content: bytes) -> Health | None:
    """A router that is not ready answers 503 with the same body."""
    try:
        return health_of(json.loads(content))
    except ValueError:
        return None
