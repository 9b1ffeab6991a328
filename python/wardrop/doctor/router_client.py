"""Requests of the doctor to a router: facts from its admin port, canaries to its public port.

`connect` asks the address which door answers, and returns the client of that door:

    wardrop dynamo, serve   admin API; canaries go to the public port; receipts name the worker
    wardrop picker          HTTP port of the picker; canaries go through the proxy before it
    wardrop select          HTTP port of the service; the doctor reserves, and asks the engine
    wardrop frontend        public port; the audit in its status names the worker. With an admin
                            port as for wardrop dynamo
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, cast
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import Request, urlopen

import msgspec

import wardrop
from wardrop.commands.admin_client import AdminError, ask
from wardrop.doctor.canary import CanaryError
from wardrop.doctor.facts import Facts, Health, Status, Worker, health_of, status_of, wiring_of
from wardrop.service.wiring import SCHEMA, DoorName, Wiring

FRONTEND_STATUS = "/wardrop/status"
"""Path of the native frontend's status."""
_TIMEOUT_S = 30.0
_AUDIT_WAIT_S = 5.0
_POLL_S = 0.05
_SHOWN_CHARACTERS = 200


class RouterClient:
    """A running `wardrop dynamo` or `wardrop serve`.

    Args:
        admin: Address of the admin API, without a trailing slash.
        public: Address of the public port; None takes the address that the router reports.
    """

    def __init__(self, admin: str, public: str | None = None) -> None:
        self.admin = admin
        self._public = public

    @property
    def takes_canaries(self) -> bool:
        """Whether the client knows an address for canaries."""
        return self._public is not None

    def facts(self) -> Facts:
        """The facts that the checks read.

        Raises:
            AdminError: The admin API does not answer, or is of another version.
        """
        asked_s = time.time()
        wiring = _wiring(self.admin)
        answered_s = time.time()
        # The answer was made between the two, so only a difference beyond them is a skew.
        skew_s = max(0.0, wiring.at_s - answered_s) - max(0.0, asked_s - wiring.at_s)
        return Facts(self.status(), wiring, self._health(), wardrop.__version__, skew_s)

    def status(self) -> Status:
        """The present status, from the admin API.

        Raises:
            AdminError: The router does not answer, or its answer has another form.
        """
        status = _status(self.admin, "/v1/status")
        if self._public is None and status.address is not None:
            reachable = status.address.replace("0.0.0.0", "127.0.0.1").replace("[::]", "[::1]")
            self._public = f"http://{reachable}"
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
        return _complete(self._public or "", body)

    def _health(self) -> Health | None:
        try:
            with urlopen(f"{self._public}/health", timeout=_TIMEOUT_S) as answer:
                return health_of(json.load(answer))
        except HTTPError as error:
            with error:
                return _health_of_error(error.read())
        except (URLError, OSError, ValueError):
            return None


class PickerClient(RouterClient):
    """A running `wardrop picker`; `public` is the address of the proxy before it."""

    def status(self) -> Status:
        """The present status. Its address speaks gRPC, so no canary goes there."""
        return _status(self.admin, "/v1/status")

    def _health(self) -> Health | None:
        return None


class SelectClient(PickerClient):
    """A running `wardrop select`. The doctor plays a caller: it reserves, asks, and frees."""

    def __init__(self, admin: str) -> None:
        super().__init__(admin)
        self._receipts: dict[str, dict[str, Any]] = {}

    @property
    def takes_canaries(self) -> bool:
        """A caller needs no further address: the service names the engines."""
        return True

    def receipt(self, request_id: str) -> dict[str, Any] | None:
        """What the service chose, and what the engine reported."""
        return self._receipts.get(request_id)

    def complete(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Reserve a worker, send the completion there, and free the reservation.

        Raises:
            CanaryError: The service or the engine does not answer.
        """
        request_id = f"doctor-{secrets.token_hex(8)}"
        model, _, group = str(body["model"]).rpartition(":")
        target = {"model_name": model, "routing_group": group, "token_ids": body["prompt"]}
        try:
            chosen = ask(self.admin, "/select_and_reserve", {"selection_id": request_id, **target})
        except AdminError as error:
            raise CanaryError(f"no reservation: {error}") from None
        try:
            _, answer = _complete(str(chosen["endpoint"]).rstrip("/"), body | {"model": model})
        finally:
            _delete(f"{self.admin}/reservations/{quote(request_id, safe='')}")
        usage = cast(dict[str, Any], answer.get("usage") or {})
        details = cast(dict[str, Any], usage.get("prompt_tokens_details") or {})
        worker = {"instance": chosen["worker_id"], "dp_rank": chosen["dp_rank"]}
        self._receipts[request_id] = _made_up(
            worker, chosen["overlap"]["gpu"], details.get("cached_tokens")
        )
        return request_id, answer


class InspectedFrontendClient(RouterClient):
    """A running `wardrop frontend` with an admin API. Dynamo makes the ids of its requests."""

    def complete(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Send a completion; the id of the answer, by which a receipt is found, and the answer.

        Raises:
            CanaryError: The router does not answer with status 200.
        """
        _, answer = super().complete(body)
        return str(answer["id"]), answer


class FrontendClient(RouterClient):
    """A running `wardrop frontend` without admin API: its status counts what it audited."""

    def __init__(self, url: str) -> None:
        super().__init__(url, url)
        self._receipts: dict[str, dict[str, Any]] = {}

    def facts(self) -> Facts:
        """The facts that the frontend shows: models, workers and feeds."""
        wiring = Wiring(SCHEMA, time.time(), wardrop.__version__, door="frontend")
        return Facts(self.status(), wiring, None, wardrop.__version__, 0.0)

    def status(self) -> Status:
        """The present status."""
        return _status(self.admin, FRONTEND_STATUS)

    def receipt(self, request_id: str) -> dict[str, Any] | None:
        """What the audit of the status said of a canary."""
        return self._receipts.get(request_id)

    def complete(self, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Send a completion, and read from the status which worker was chosen.

        Raises:
            CanaryError: No answer, no audit of the answer, or other requests ended meanwhile.
        """
        before = _workers(self.status())
        _, answer = _complete(self.admin, body)
        deadline_s = time.monotonic() + _AUDIT_WAIT_S
        while True:
            audited = [
                (worker, worker.audited_requests - before[key].audited_requests, before[key])
                for key, worker in _workers(self.status()).items()
                if key in before and worker.audited_requests > before[key].audited_requests
            ]
            if audited:
                break
            if time.monotonic() > deadline_s:
                raise CanaryError(
                    "no worker shows an audited request after the canary: Dynamo routed it, or the "
                    "engine reports no cached tokens"
                )
            time.sleep(_POLL_S)
        if len(audited) > 1 or audited[0][1] > 1:
            raise CanaryError(
                "other requests ended meanwhile; run the doctor while the frontend is idle"
            )
        worker, _, earlier = audited[0]
        request_id = secrets.token_hex(8)
        self._receipts[request_id] = _made_up(
            {"instance": worker.instance, "dp_rank": worker.dp_rank},
            worker.predicted_cached_tokens - earlier.predicted_cached_tokens,
            worker.reported_cached_tokens - earlier.reported_cached_tokens,
        )
        return request_id, answer


def connect(admin: str, public: str | None = None) -> RouterClient:
    """The client of the door that answers at `admin`.

    Args:
        admin: Address of the admin API, or of the door's HTTP port, without a trailing slash.
        public: Address of the public port, or of the proxy before a picker.

    Raises:
        AdminError: Nothing answers there, or a router of another version does.
    """
    try:
        door: DoorName = _wiring(admin).door
    except AdminError as error:
        try:
            ask(admin, FRONTEND_STATUS)
        except AdminError:
            raise error from None
        return FrontendClient(admin)
    match door:
        case "frontend":
            return InspectedFrontendClient(admin, public)
        case "select":
            return SelectClient(admin)
        case "picker":
            return PickerClient(admin, public)
        case _:
            return RouterClient(admin, public)


def _wiring(admin: str) -> Wiring:
    try:
        return wiring_of(ask(admin, "/v1/wiring"))
    except msgspec.ValidationError as error:
        raise AdminError(f"GET /v1/wiring has another form: {error}") from None


def _status(admin: str, path: str) -> Status:
    try:
        return status_of(ask(admin, path))
    except msgspec.ValidationError as error:
        raise AdminError(f"GET {path} has another form: {error}") from None


def _workers(status: Status) -> dict[tuple[str, str, int, int], Worker]:
    """Workers by model, role, instance and rank."""
    return {
        (model.name, pool.role, worker.instance, worker.dp_rank): worker
        for model in status.models
        for pool in model.pools
        for worker in pool.workers
    }


def _made_up(worker: dict[str, Any], predicted: int, reported: int | None) -> dict[str, Any]:
    """A receipt of a door that keeps none, with the fields that canaries read."""
    outcome = {"predicted_cached_tokens": predicted, "cached_tokens": reported}
    return {"abstained": None, "legs": [{"worker": worker}], "outcome": outcome}


def _complete(url: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Send a completion; the request id and the answer.

    Raises:
        CanaryError: No answer with status 200.
    """
    sent_id = f"doctor-{secrets.token_hex(8)}"
    headers = {"content-type": "application/json", "x-request-id": sent_id}
    request = Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)
    try:
        with urlopen(request, timeout=_TIMEOUT_S) as answer:
            return answer.headers["x-request-id"] or sent_id, json.load(answer)
    except HTTPError as error:
        with error:
            text = error.read(_SHOWN_CHARACTERS).decode(errors="replace")
        raise CanaryError(f"got status {error.code}, expected 200: {text}") from None
    except (URLError, OSError, ValueError) as error:
        raise CanaryError(f"no answer at {url}: {error}") from None


def _delete(url: str) -> None:
    """Free a reservation. A failure is no finding: the reservation ends by itself."""
    try:
        urlopen(Request(url, method="DELETE"), timeout=_TIMEOUT_S).close()
    except (URLError, OSError):
        return


def _health_of_error(content: bytes) -> Health | None:
    """A router that is not ready answers 503 with the same body."""
    try:
        return health_of(json.loads(content))
    except ValueError:
        return None
