"""The admin API of a running gateway: HTTP on the loopback only, on a port of its own.

    GET  /                                the live page
    GET  /v1/live                         messages of the live page, as server-sent events
    GET  /v1/settings                     every setting with its value, unit and bounds
    POST /v1/settings                     {"changes": {setting: value}, "reason": "…"} → the record
    POST /v1/settings/roll-back           {"reason": "…", "number": 7} → the record
    GET  /v1/audit?last=50                records, oldest first
    GET  /v1/curves                       learned latency curves with their units
    POST /v1/curves                       [{"model", "role", "record"}] → workers restored
    GET  /v1/shadows                      estimates for other policies; 404 without shadows
    GET  /v1/receipts/{request_id}        reasons for the placement of a request, and its outcome
    GET  /v1/wiring                       versions and switches, for `wardrop doctor`
    GET  /v1/status                       workers, feeds and missing events
    GET  /metrics                         the metrics page of the public port
    GET  /v1/workers                      `wardrop serve`: members with what they answered
    POST /v1/workers                      {"url", "events", …} → follow a further worker
    DELETE /v1/workers?url=URL            leave a worker that was added here

A change needs `content-type: application/json`, and every request needs a loopback `Host`. A page
in a browser on this machine can send neither to another origin. Bodies have at most 1 MiB, bodies
with curves at most 64 MiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
from aiohttp import web

from wardrop.control.audit import HAND
from wardrop.control.curves import UNITS
from wardrop.control.door import Door
from wardrop.control.settings import OBJECTIVE, QUEUE, SettingError
from wardrop.decoding import decode_json
from wardrop.service.live import (
    CONTENT_SECURITY_POLICY,
    LiveFeed,
    TooManyViewersError,
    document,
)
from wardrop.service.wiring import Wiring

log = logging.getLogger("wardrop.control")

HOST = "127.0.0.1"
_CURVES_BYTES = 64 << 20
_BODY_BYTES = 1 << 20
_MAX_CHANGES = 32
_STOP_TIMEOUT_S = 1.0
"""Open connections get so long to end at a stop: a slow client must not hold the router."""
_LOOPBACK = {"127.0.0.1", "localhost", "[::1]"}

T = TypeVar("T")


class _Change(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a change: values by setting, and the reason."""

    changes: Annotated[dict[str, Any], msgspec.Meta(min_length=1, max_length=_MAX_CHANGES)]
    reason: str = ""


class _RollBack(msgspec.Struct, forbid_unknown_fields=True):
    """Body of a roll-back: the reason, and the number of the change, by default the latest."""

    reason: str = ""
    number: int | None = None


class _Pool(msgspec.Struct):
    """Curves of one pool. The gateway decodes the record."""

    model: str
    role: str
    record: msgspec.Raw


_CHANGE = msgspec.json.Decoder(_Change)
_ROLL_BACK = msgspec.json.Decoder(_RollBack)
_POOLS = msgspec.json.Decoder(list[_Pool])

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class InspectedGateway(Protocol):
    """The methods of `wardrop._core.Gateway` that the admin API calls."""

    def status(self) -> str:
        """Workers, feeds and missing events, as JSON."""
        ...

    def metrics(self) -> str:
        """The metrics page."""
        ...

    def curves(self) -> str:
        """The learned curves, as JSON."""
        ...

    def restore_curves(self, model: str, role: str, record_json: str) -> int:
        """Restore the curves of a pool; the number of workers restored."""
        ...

    def shadows(self) -> str | None:
        """Estimates of the shadows, as JSON; None without shadows."""
        ...

    def receipt(self, request_id: str, /) -> str | None:
        """The receipt of a decision, as JSON; None when no receipt has the id."""
        ...


class Members(Protocol):
    """The members of a fleet without Dynamo, as the admin API changes them."""

    def describe(self) -> list[dict[str, Any]]:
        """Every member with its state."""
        ...

    def add(self, worker_json: bytes) -> None:
        """Follow a further worker; `ValueError` for one that cannot be followed."""
        ...

    def remove(self, url: str) -> None:
        """Leave a worker that was added; `ValueError` for another one."""
        ...


class Admin:
    """The server of the admin API.

    Args:
        gateway: The gateway to read.
        door: The audited door, which changes settings.
        port: Port on 127.0.0.1; 0 takes a free one.
        live: The feed of the live page.
        wiring: Returns the facts of this process, with the number of receipts kept.
        members: The members of a fleet without Dynamo; None for a fleet of Dynamo.
    """

    def __init__(
        self,
        gateway: InspectedGateway,
        door: Door,
        port: int,
        live: LiveFeed,
        wiring: Callable[[], Wiring],
        members: Members | None = None,
    ) -> None:
        self._gateway = gateway
        self._wiring = wiring
        self._door = door
        self._live = live
        self._live_task: asyncio.Task[None] | None = None
        self._members = members
        self._configured_port = port
        self.port: int | None = None
        application = web.Application(client_max_size=_CURVES_BYTES, middlewares=[_guard])
        application.add_routes(
            [
                web.get("/", self._page),
                web.get("/v1/live", self._live_events),
                web.get("/v1/settings", self._settings),
                web.post("/v1/settings", self._change),
                web.post("/v1/settings/roll-back", self._roll_back),
                web.get("/v1/audit", self._audit),
                web.get("/v1/curves", self._curves),
                web.post("/v1/curves", self._restore),
                web.get("/v1/shadows", self._shadows),
                web.get("/v1/receipts/{request_id}", self._receipt),
                web.get("/v1/wiring", self._wiring_facts),
                web.get("/v1/status", self._status),
                web.get("/metrics", self._metrics),
            ]
        )
        if members is not None:
            application.add_routes(
                [
                    web.get("/v1/workers", self._workers),
                    web.post("/v1/workers", self._add_worker),
                    web.delete("/v1/workers", self._remove_worker),
                ]
            )
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=_STOP_TIMEOUT_S)

    async def start(self) -> int:
        """Listen and return the port: the configured port, or a free one where that is taken.

        Raises:
            OSError: No port on the loopback is available.
        """
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, HOST, self._configured_port).start()
        except OSError as error:
            if not self._configured_port:
                raise
            log.warning(
                "admin port %d: %s; a free port is used instead", self._configured_port, error
            )
            await web.TCPSite(self._runner, HOST, 0).start()
        self.port = int(self._runner.addresses[0][1])
        self._live_task = asyncio.create_task(self._live.run(), name="live")
        log.info("admin API and live page on http://%s:%d/", HOST, self.port)
        return self.port

    async def stop(self) -> None:
        """Close every connection."""
        if self._live_task is not None:
            self._live_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._live_task
        await self._live.close()
        await self._runner.cleanup()

    async def _page(self, _request: web.Request) -> web.Response:
        headers = {
            "content-security-policy": CONTENT_SECURITY_POLICY,
            "cache-control": "no-cache",
            "x-content-type-options": "nosniff",
            "referrer-policy": "no-referrer",
        }
        return web.Response(text=document(), content_type="text/html", headers=headers)

    async def _live_events(self, request: web.Request) -> web.StreamResponse:
        if self._live.is_full:
            self._live.refused_viewers += 1
            return _refusal(503, str(TooManyViewersError(self._live.max_viewers)))
        headers = {"content-type": "text/event-stream", "cache-control": "no-store"}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError, TimeoutError, TooManyViewersError):
            await self._live.serve(response.write)
        return response

    async def _settings(self, _request: web.Request) -> web.Response:
        bounds = {
            name: {"low": b.low, "high": b.high, "unit": b.unit, "says": b.says}
            for name, b in (QUEUE | OBJECTIVE).items()
        }
        return web.json_response({"settings": self._door.settings(), "bounds": bounds})

    async def _change(self, request: web.Request) -> web.Response:
        body = await _decode(request, _CHANGE, _BODY_BYTES)
        return web.json_response(asdict(self._door.change(body.changes, HAND, body.reason)))

    async def _roll_back(self, request: web.Request) -> web.Response:
        body = await _decode(request, _ROLL_BACK, _BODY_BYTES)
        return web.json_response(
            asdict(self._door.roll_back(HAND, body.reason, number=body.number))
        )

    async def _audit(self, request: web.Request) -> web.Response:
        text = request.query.get("last", "50")
        if not text.isdecimal() or not 1 <= int(text) <= 1024:
            raise SettingError(f"last: got {text!r}, expected 1 to 1024")
        return web.json_response([asdict(record) for record in self._door.records(int(text))])

    async def _curves(self, _request: web.Request) -> web.Response:
        pools: Any = json.loads(self._gateway.curves())
        return web.json_response({"units": UNITS, "pools": pools})

    async def _restore(self, request: web.Request) -> web.Response:
        restored = 0
        for pool in await _decode(request, _POOLS, _CURVES_BYTES):
            record = bytes(pool.record).decode()
            restored += self._gateway.restore_curves(pool.model, pool.role, record)
        return web.json_response({"workers": restored})

    async def _shadows(self, _request: web.Request) -> web.Response:
        shadows = self._gateway.shadows()
        if shadows is None:
            return _refusal(
                404,
                "the gateway has no shadows; start it with --shadows, for example "
                "--shadows 'dynamo;toll+queue(kappa=30)', or with --shadows-limits",
            )
        return web.json_response({"models": json.loads(shadows)})

    async def _receipt(self, request: web.Request) -> web.Response:
        request_id = request.match_info["request_id"]
        text = self._gateway.receipt(request_id)
        if text is not None:
            return web.json_response(text=text)
        kept = self._wiring().receipts
        if not kept:
            return _refusal(404, "no receipts are kept; start with --receipts N")
        return _refusal(
            404,
            f"no receipt of {request_id[:128]!r}: expected the x-request-id of one of the last "
            f"{kept} requests with a prompt",
        )

    async def _wiring_facts(self, _request: web.Request) -> web.Response:
        return web.json_response(msgspec.to_builtins(self._wiring()))

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(text=self._gateway.status())

    async def _workers(self, _request: web.Request) -> web.Response:
        members = self._members.describe() if self._members else []
        return web.json_response({"workers": members})

    async def _add_worker(self, request: web.Request) -> web.Response:
        if self._members is not None:
            self._members.add(await request.read())
        return web.json_response({}, status=201)

    async def _remove_worker(self, request: web.Request) -> web.Response:
        if self._members is not None:
            self._members.remove(request.query.get("url", ""))
        return web.json_response({})

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(text=self._gateway.metrics(), content_type="text/plain")


@web.middleware
async def _guard(request: web.Request, handler: Answer) -> web.StreamResponse:
    host = request.host.rpartition(":")[0] or request.host
    if host not in _LOOPBACK:
        return _refusal(403, f"got host {request.host!r}, expected the loopback of this machine")
    if request.method in ("POST", "DELETE") and request.content_type != "application/json":
        return _refusal(415, "expected content-type: application/json for a change")
    try:
        return await handler(request)
    except web.HTTPException:
        raise
    except ValueError as error:
        return _refusal(400, str(error))
    except Exception as error:
        # One request may fail, for example because the audit log cannot be written.
        log.error("%s %s failed: %s: %s", request.method, request.path, type(error).__name__, error)
        return _refusal(500, f"the request failed: {type(error).__name__}: {error}")


def _refusal(status: int, text: str) -> web.Response:
    return web.json_response({"error": text}, status=status)


async def _decode(request: web.Request, decoder: msgspec.json.Decoder[T], limit_bytes: int) -> T:
    if (request.content_length or 0) > limit_bytes:
        raise ValueError(
            f"got a body of {request.content_length} bytes, expected at most {limit_bytes}"
        )
    return decode_json(decoder, await request.read() or b"{}", "body", limit_bytes)
