"""`wardrop dynamo` as one object: frontends, gateway, discovery, and their common life.

start:  supervisor → first frontend answers → gateway listens → discovery feeds it
stop:   SIGTERM or SIGINT → drain → gateway stops → frontends stop; a second signal hurries
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import aiohttp

from wardrop import shadow_policies
from wardrop.config import Config, ConfigError, Dynamo
from wardrop.control.audit import AuditLog
from wardrop.control.calibrator import Calibrator
from wardrop.control.door import Door
from wardrop.control.run import Watcher
from wardrop.dynamo.card_files import card_folder
from wardrop.dynamo.dump import dump_events
from wardrop.dynamo.etcd_source import EtcdSource
from wardrop.dynamo.follow import Follower, GatewayControl
from wardrop.dynamo.frontend_source import FrontendSource
from wardrop.dynamo.install import dynamo_version
from wardrop.dynamo.source import FileSource, Source
from wardrop.dynamo.store import default_root
from wardrop.dynamo.supervisor import Supervisor, SupervisorError
from wardrop.service.admin import Admin
from wardrop.service.index_keeper import IndexKeeper, unusable
from wardrop.service.keeper import CurveKeeper
from wardrop.service.prior import timing_points

log = logging.getLogger("wardrop.control")

_DUMP_TIMEOUT_S = 60.0
_ASK_TIMEOUT_S = 5.0
_HURRIED_DRAIN_S = 0.0


class Gateway(GatewayControl, Protocol):
    """All of `wardrop._core.Gateway`."""

    def start(self) -> int:
        """Listen; the port."""
        ...

    def set_upstreams(self, urls: list[str]) -> None:
        """The frontends to use from now on."""
        ...

    def routing(self) -> str:
        """Policy and queue in force."""
        ...

    def set_routing(self, change_json: str, /) -> str:
        """Change them."""
        ...

    def sample(self) -> str:
        """Outcomes since the last call."""
        ...

    def set_gauges(self, gauges_json: str, /) -> None:
        """Figures for the metrics page."""
        ...

    def curves(self) -> str:
        """The learned curves."""
        ...

    def restore_curves(self, model: str, role: str, record_json: str) -> int:
        """Take curves over."""
        ...

    def shadows(self) -> str | None:
        """What the shadows say; None without shadows."""
        ...

    def save_index(self) -> bytes:
        """Every pool's index."""
        ...

    def saved_index(self, data: bytes, /) -> str:
        """What such bytes hold."""
        ...

    def restore_index(
        self, model: str, role: str, data: bytes, publishers: list[int], dump_follows: bool
    ) -> str:
        """Take one pool over."""
        ...

    def receipt(self, request_id: str, /) -> str | None:
        """Why a request went where it went."""
        ...

    def metrics(self) -> str:
        """The metrics page."""
        ...

    def drain(self, timeout_s: float) -> bool:
        """Take no new request, wait for the others; True when none is left."""
        ...

    def stop(self) -> None:
        """End every thread and connection."""
        ...


class StartError(RuntimeError):
    """Nothing was served; the text says what is missing."""


def choose_source(dynamo: Dynamo, environment: Mapping[str, str]) -> Source:
    """The discovery backend that the configuration and Dynamo's own environment ask for."""
    interval_s = dynamo.poll_interval_ms / 1000
    kind = dynamo.discovery
    if kind == "auto":
        backend = environment.get("DYN_DISCOVERY_BACKEND")
        if backend in ("file", "etcd"):
            kind = backend
        elif dynamo.store or dynamo.etcd_endpoints:
            kind = "file" if dynamo.store else "etcd"
        elif dynamo.upstreams:
            kind = "frontend"
        elif backend:
            raise StartError(
                f"DYN_DISCOVERY_BACKEND={backend} can not be read by Wardrop; start the frontends "
                "yourself and give --upstream URL"
            )
        else:
            kind = "etcd"  # Dynamo's own default
    if kind == "file":
        root = Path(dynamo.store) if dynamo.store else default_root(environment)
        return FileSource(root, interval_s)
    if kind == "etcd":
        given = environment.get("ETCD_ENDPOINTS", "http://localhost:2379").split(",")
        return EtcdSource(dynamo.etcd_endpoints or given, interval_s)
    log.warning(
        "discovery by asking the frontends: no event channels%s, no capacities",
        "" if dynamo.event_endpoints else " (routing is by load only)",
    )
    return FrontendSource(
        dynamo.upstreams, dynamo.block_size, dynamo.event_endpoints, max(interval_s, 1.0)
    )


class Server:
    """One run of `wardrop dynamo`.

    Args:
        config: all stages.
        frontend_arguments: further flags for `dynamo.frontend`.
        environment: variables of this process; `DYN_*` of it reach the frontends.
    """

    def __init__(
        self, config: Config, frontend_arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        if config.dynamo.upstreams and frontend_arguments:
            raise StartError(
                f"got frontend flags {' '.join(frontend_arguments)!r} with --upstream, which "
                "starts no frontend; give one or the other"
            )
        if config.index.file and (reason := unusable(Path(config.index.file))):
            raise StartError(f"index.file: got {config.index.file!r}, but {reason}")
        try:
            table = config.control.timing_table
            self._timing = timing_points(Path(table)) if table else {}
        except ValueError as error:
            raise StartError(f"control.timing_table: {error}") from error
        self.config = config
        self.source = choose_source(config.dynamo, environment)
        self.port: int | None = None
        self._python = config.dynamo.python or sys.executable
        self._environment = dict(environment)
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._upstreams_changed = asyncio.Event()
        self._supervisor: Supervisor | None = None
        self._follower: Follower | None = None
        self._index: IndexKeeper | None = None
        if not config.dynamo.upstreams:
            version = dynamo_version(self._python)
            log.info("Dynamo %s", version)
            self._supervisor = Supervisor(
                config.dynamo.frontends,
                config.dynamo.frontend_mode,
                frontend_arguments,
                dynamo_environment(self.source, environment),
                config.dynamo.restart_limit,
                lambda _urls: self._upstreams_changed.set(),
                self._serves_all,
                self._python,
            )

    def request_stop(self) -> None:
        """Drain and stop; asked again: stop at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    @property
    def upstreams(self) -> list[str]:
        """Frontends that answer now, or those we were given."""
        if self._supervisor is None:
            return list(self.config.dynamo.upstreams)
        return self._supervisor.urls

    async def run(self) -> int:
        """Serve until a stop is requested; the exit code.

        Returns:
            0 after a whole drain, 1 when requests were cut off.

        Raises:
            StartError: the frontends did not come up or the port can not be had.
            SupervisorError: a frontend can not be kept running.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        children = asyncio.create_task(self._supervisor.run()) if self._supervisor else None
        try:
            await self._await_frontends(children)
            if self._stop.is_set():
                return 0
            gateway = self._start_gateway()
            try:
                await self._serve(gateway, children)
                return 0 if await self._drain(gateway) else 1
            finally:
                if self._index is not None:
                    await self._index.save()
                await asyncio.to_thread(gateway.stop)
        finally:
            if children is not None:
                children.cancel()
                with contextlib.suppress(asyncio.CancelledError, SupervisorError):
                    await children

    async def _await_frontends(self, children: asyncio.Task[None] | None) -> None:
        timeout_s = self.config.dynamo.ready_timeout_s
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while children is not None and not self.upstreams and not self._stop.is_set():
            if children.done():
                await children
            if asyncio.get_running_loop().time() > deadline_s:
                raise StartError(
                    f"no frontend answered within {timeout_s:g} s; see its lines above, or raise "
                    "--dynamo-ready-timeout-s"
                )
            await asyncio.sleep(0.02)

    def _start_gateway(self) -> Gateway:
        from wardrop import _core  # pyright: ignore

        try:
            text = self.config.gateway_json(self.upstreams, self._timing)
            gateway: Gateway = cast(Any, _core).Gateway(text)
        except ValueError as error:
            raise StartError(f"the gateway refuses its configuration: {error}") from error
        try:
            self.port = gateway.start()
        except (OSError, RuntimeError, ValueError) as error:
            raise StartError(
                f"can not listen on {self.config.http.host}:{self.config.http.port}: {error}"
            ) from error
        log.info(
            "listening on http://%s:%d, policy %s, in front of %s, fleet from %s",
            self.config.http.host,
            self.port,
            self.config.routing.policy,
            ", ".join(self.upstreams),
            self.source.name,
        )
        return gateway

    async def _serve(self, gateway: Gateway, children: asyncio.Task[None] | None) -> None:
        """Run the parts until a stop is requested; an error of any part ends it."""
        if self.config.index.file:
            self._index = IndexKeeper(gateway, self.config.index, self._can_dump)
            self._index.load()
        parts: list[Coroutine[Any, Any, Any]] = [*self._follower_parts(gateway)]
        if self._index is not None:
            parts.append(self._index.run())
        control = self.config.control
        audit = AuditLog(Path(control.audit_file)) if control.audit_file else None
        door = Door(gateway, audit)
        admin = None
        if control.admin_port >= 0:
            admin = Admin(gateway, door, control.admin_port, control.receipts)
            await admin.start()
        page = self._read_page if control.prometheus else None
        watcher = Watcher(gateway, door, control.controller, page, moves=control.moves)
        parts.append(watcher.run(control.period_ms / 1000))
        if self.config.shadows.calibrate:
            calibrator = Calibrator(gateway, door, lambda: watcher.controller.on_trial)
            parts.append(calibrator.run(self.config.shadows.tick_s))
        keeper = CurveKeeper(gateway, Path(control.curves_file)) if control.curves_file else None
        if keeper is not None:
            keeper.load()
            parts.append(keeper.run())
        parts += [self._pass_upstreams_on(gateway), self._tell_trouble(), self._stop.wait()]
        tasks = [asyncio.create_task(part) for part in parts]
        ending = {*tasks, *([children] if children is not None else [])}
        try:
            done, _ = await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if admin is not None:
                await admin.stop()
            if keeper is not None:
                keeper.save()

    async def _read_page(self) -> str:
        timeout = aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(self.config.control.prometheus) as answer,
            ):
                return await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(f"{self.config.control.prometheus}: {error}") from error

    @property
    def _can_dump(self) -> bool:
        """Blocks can be read from Dynamo."""
        return self.config.dynamo.bootstrap and not isinstance(self.source, FrontendSource)

    async def _restore_index(self, pool: tuple[str, str], publishers: list[int]) -> None:
        if self._index is not None:
            await asyncio.to_thread(self._index.restore, pool, publishers)

    def _follower_parts(self, gateway: Gateway) -> list[Coroutine[Any, Any, None]]:
        dynamo = self.config.dynamo

        async def dump(endpoint: str, block_size: int) -> str:
            environment = dynamo_environment(self.source, self._environment)
            return await dump_events(
                self._python, endpoint, block_size, environment, _DUMP_TIMEOUT_S
            )

        self._follower = follower = Follower(
            gateway,
            self.source,
            card_folder,
            dump if self._can_dump else None,
            dynamo.resync_interval_s,
            self._is_served,
            self._restore_index,
        )
        return [follower.follow(), follower.repair()]

    async def _is_served(self, model: str) -> bool:
        for url in self.upstreams:
            if model in await models_served(url):
                return True
        return False

    async def _serves_all(self, url: str) -> bool:
        """Whether a frontend of ours knows every model that is routed: a new one takes a moment."""
        wanted = set(self._follower.view.models) if self._follower else set[str]()
        return not wanted or wanted <= await models_served(url)

    async def _pass_upstreams_on(self, gateway: Gateway) -> None:
        while True:
            await self._upstreams_changed.wait()
            self._upstreams_changed.clear()
            urls = self.upstreams
            if urls:  # with none left the old addresses stay: they refuse at once, and are counted
                gateway.set_upstreams(urls)

    async def _tell_trouble(self) -> None:
        told: str | None = None
        while True:
            await asyncio.sleep(1.0)
            if self.source.trouble != told:
                told = self.source.trouble
                if told:
                    log.warning("discovery: %s; going on with the last view", told)
                else:
                    log.info("discovery answers again")

    async def _drain(self, gateway: Gateway) -> bool:
        timeout_s = self.config.dynamo.drain_timeout_s
        log.info("stopping: draining for up to %g s (a second signal stops at once)", timeout_s)
        drained = asyncio.create_task(asyncio.to_thread(gateway.drain, timeout_s))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drained, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not drained.done():
            log.warning("a second signal: requests in flight are cut off")
            await asyncio.to_thread(gateway.drain, _HURRIED_DRAIN_S)
            return False
        whole = drained.result()
        if not whole:
            log.warning("requests were still in flight after %g s; they are cut off", timeout_s)
        return whole


async def models_served(url: str) -> set[str]:
    """Names that a frontend lists; none when it does not answer."""
    timeout = aiohttp.ClientTimeout(total=_ASK_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url.rstrip('/')}/v1/models") as answer,
        ):
            content: Any = await answer.json(content_type=None)
        return {str(model["id"]) for model in content["data"]}
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
        return set()


def dynamo_environment(source: Source, environment: Mapping[str, str]) -> dict[str, str]:
    """What a Dynamo process of ours needs to see the fleet that `source` reads.

    Without our system port, which two processes can not share.
    """
    changed = {name: value for name, value in environment.items() if name != "DYN_SYSTEM_PORT"}
    changed["DYN_SDK_DISABLE_ANSI_LOGGING"] = "1"
    if isinstance(source, FileSource):
        changed |= {"DYN_DISCOVERY_BACKEND": "file", "DYN_FILE_KV": str(source.root)}
    if isinstance(source, EtcdSource):
        changed |= {
            "DYN_DISCOVERY_BACKEND": "etcd",
            "ETCD_ENDPOINTS": ",".join(source.endpoints),
        }
    return changed


def check_gateway(config: Config) -> None:
    """Refuse what the gateway would refuse before anything starts; a policy with its setting.

    Raises:
        ConfigError: names the setting, what was got and what there is.
    """
    from wardrop import _core  # pyright: ignore

    routing = config.routing
    asked = [("routing.policy", {"name": routing.policy, **routing.parameters})]
    shadows = shadow_policies.parse(config.shadows.policies)
    asked += [(f"shadows.policies: {shadow['name']}", shadow["policy"]) for shadow in shadows]
    for setting, policy in asked:
        name = policy.pop("name")
        try:
            cast(Any, _core).Router(16, name, **policy)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{setting}: {error}") from error
    try:
        # Made and dropped: it does not listen before `start`.
        _core.Gateway(config.gateway_json([]))
    except ValueError as error:
        raise ConfigError(str(error)) from error


def run_server(config: Config, frontend_arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; the exit code of `wardrop dynamo`."""
    check_gateway(config)

    async def run() -> int:
        return await Server(config, frontend_arguments, os.environ).run()

    return asyncio.run(run())
