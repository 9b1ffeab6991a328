"""One run of `wardrop dynamo`: frontends, gateway and discovery, and their common life.

Start: the supervisor starts frontends; when the first one answers, the gateway listens; discovery
then fills its fleet. While it serves, every part beside the gateway is isolated (`parts`): a part
that fails starts again, and the gateway serves with the last known fleet. Stop, after SIGTERM or
SIGINT: drain the requests in flight, stop the gateway, stop the frontends. A second signal cuts the
drain short.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import wardrop
from wardrop._core import Gateway
from wardrop.config import Config, ConfigError, check_files
from wardrop.config.files import configured_points
from wardrop.dynamo.block_dump import dump_blocks
from wardrop.dynamo.discovery.backends import choose_source, dynamo_environment
from wardrop.dynamo.discovery.frontend_source import FrontendSource
from wardrop.dynamo.discovery.scope import choose_scope
from wardrop.dynamo.discovery.source import Source
from wardrop.dynamo.freed_memory import FreedMemory
from wardrop.dynamo.frontend_client import models_served, models_served_by_any
from wardrop.dynamo.gateway_sync import Actions, GatewaySync
from wardrop.dynamo.install import dynamo_version
from wardrop.dynamo.parts import Parts
from wardrop.dynamo.supervisor import FrontendSpec, Supervisor, SupervisorError
from wardrop.dynamo.tokenizer_files import tokenizer_folder
from wardrop.service import wiring
from wardrop.service.admin import Admin, Members
from wardrop.service.control_plane import ControlPlane
from wardrop.service.index_file import SavedIndex
from wardrop.service.wiring import DoorName, Wiring

log = logging.getLogger("wardrop.control")

_DUMP_TIMEOUT_S = 60.0
_READY_POLL_S = 0.02
_DISCOVERY_POLL_S = 1.0
_NO_DRAIN_S = 0.0


class StartError(RuntimeError):
    """The router did not serve a request; the text says what is missing."""


class Server:
    """One run of `wardrop dynamo`.

    Args:
        config: The whole configuration.
        frontend_arguments: Further flags for `dynamo.frontend`.
        environment: Variables of this process. Its `DYN_*` variables reach the frontends.

    Raises:
        ConfigError: Two settings exclude each other, or a file cannot be used.
        DynamoMissingError: Frontends must be started, and the interpreter has no Dynamo.
    """

    def __init__(
        self, config: Config, frontend_arguments: Sequence[str], environment: Mapping[str, str]
    ) -> None:
        if config.dynamo.upstreams and frontend_arguments:
            raise ConfigError(
                f"got frontend flags {' '.join(frontend_arguments)!r} with --upstream, which "
                "starts no frontend; give one or the other"
            )
        scope = choose_scope(
            config.dynamo.namespace,
            config.dynamo.namespace_prefix,
            frontend_arguments,
            environment,
        )
        self._set_up(config, environment, choose_source(config.dynamo, environment, scope))
        if not config.dynamo.upstreams:
            version = dynamo_version(self._python)
            log.info("Dynamo %s", version)
            spec = FrontendSpec(
                count=config.dynamo.frontends,
                mode=config.dynamo.frontend_mode,
                arguments=tuple(frontend_arguments),
                environment=dynamo_environment(self.source, environment, scope),
                restart_limit=config.dynamo.restart_limit,
                python=self._python,
            )
            self._supervisor = Supervisor(
                spec, lambda _urls: self._upstreams_changed.set(), self._serves_all
            )
            self._supervisor.restarted = self.source.frontends_restarted

    def _set_up(self, config: Config, environment: Mapping[str, str], source: Source) -> None:
        """Check the files, and set what every router has.

        Raises:
            ConfigError: A file cannot be used.
        """
        check_files(config)
        self._timing = configured_points(config.control.timing_table)
        self.config = config
        self.source: Source = source
        self.drain_timeout_s = config.dynamo.drain_timeout_s
        self.port: int | None = None
        self.gateway: Gateway | None = None
        self._python = config.dynamo.python or sys.executable
        self._environment = dict(environment)
        self._stop = asyncio.Event()
        self._cut_short = asyncio.Event()
        self._upstreams_changed = asyncio.Event()
        self._supervisor: Supervisor | None = None
        self._sync: GatewaySync | None = None
        self._index: SavedIndex | None = None
        self._control: ControlPlane | None = None

    def request_stop(self) -> None:
        """Drain and stop. A second call cuts the drain short."""
        if self._stop.is_set():
            self._cut_short.set()
        self._stop.set()

    @property
    def upstreams(self) -> list[str]:
        """Addresses of the configured frontends, or of the started frontends that answer now."""
        if self._supervisor is None:
            return list(self.config.dynamo.upstreams)
        return self._supervisor.urls

    async def run(self, signals: bool = True) -> int:
        """Serve until a stop is requested.

        Args:
            signals: Whether SIGTERM and SIGINT request a stop. Only a main thread can take them.

        Returns:
            Exit code: 0 after a complete drain, 1 when requests were cut off.

        Raises:
            StartError: The frontends did not answer in time, or the port is not available.
            SupervisorError: A frontend ended too often.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT) if signals else ():
            loop.add_signal_handler(number, self.request_stop)
        frontends = asyncio.create_task(self._supervisor.run()) if self._supervisor else None
        try:
            await self._await_frontends(frontends)
            if self._stop.is_set():
                return 0
            gateway = self._start_gateway()
            self.gateway = gateway
            try:
                await self._serve(gateway, frontends)
                return 0 if await self._drain(gateway) else 1
            finally:
                await self._save_state()
                await asyncio.to_thread(gateway.stop)
        finally:
            if frontends is not None:
                frontends.cancel()
                with contextlib.suppress(asyncio.CancelledError, SupervisorError):
                    await frontends

    async def _await_frontends(self, frontends: asyncio.Task[None] | None) -> None:
        timeout_s = self.config.dynamo.ready_timeout_s
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        while frontends is not None and not self.upstreams and not self._stop.is_set():
            if frontends.done():
                await frontends
            if asyncio.get_running_loop().time() > deadline_s:
                raise StartError(
                    f"no frontend answered within {timeout_s:g} s; see the frontends' lines above, "
                    "or raise --dynamo-ready-timeout-s"
                )
            await asyncio.sleep(_READY_POLL_S)

    def _start_gateway(self) -> Gateway:
        try:
            gateway = Gateway(self.config.gateway_json(self.upstreams, self._timing))
        except ValueError as error:
            raise StartError(f"the gateway refuses its configuration: {error}") from error
        try:
            self.port = gateway.start()
        except (OSError, RuntimeError, ValueError) as error:
            raise StartError(
                f"cannot listen on {self.config.http.host}:{self.config.http.port}: {error}"
            ) from error
        log.info(
            "listening on http://%s:%d, policy %s, in front of %s, fleet from %s",
            self.config.http.host,
            self.port,
            self.config.routing.policy,
            ", ".join(self.upstreams) or "workers",
            self.source.name,
        )
        return gateway

    async def _serve(self, gateway: Gateway, frontends: asyncio.Task[None] | None) -> None:
        """Run the parts until a stop is requested, or until no frontend can be kept running."""
        config = self.config
        parts = Parts(gateway)
        runs: dict[str, Callable[[], Awaitable[object]]] = {}
        if config.index.file:
            self._index = SavedIndex(gateway, config.index, self._can_dump)
            parts.attempt("saved_index", self._index.load)
            runs["saved_index"] = self._index.run
        self._control = ControlPlane(gateway, config, self._wiring, self._members())
        self._control.load(parts)
        self._sync = self._make_sync(gateway)
        runs.update(self._further_parts(gateway))
        runs["discovery"] = self._sync.follow
        runs["fleet"] = self._sync.repair
        runs.update(self._control.runs())
        runs["discovery_source"] = partial(self._report_discovery, parts)
        runs["freed_memory"] = FreedMemory().run
        tasks = [
            asyncio.create_task(parts.keep(name, run), name=name) for name, run in runs.items()
        ]
        stop = asyncio.create_task(self._stop.wait())
        try:
            ending = {stop, *([frontends] if frontends is not None else [])}
            done, _ = await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in (*tasks, stop):
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def admin(self) -> Admin | None:
        """The admin API; None before its start, and without an admin port."""
        return None if self._control is None else self._control.admin

    def _wiring(self) -> Wiring:
        """Facts about this process that `wardrop doctor` reads."""
        started = self._supervisor is not None
        return Wiring(
            wiring.SCHEMA,
            time.time(),
            wardrop.__version__,
            dynamo_version(self._python) if started else None,
            self.config.dynamo.frontend_mode if started else None,
            self.source.name,
            wiring.switches_of(self._environment),
            self.config.control.receipts,
            self._door,
        )

    @property
    def _door(self) -> DoorName:
        """Command that runs this router."""
        return "dynamo"

    def _further_parts(self, gateway: Gateway) -> dict[str, Callable[[], Awaitable[object]]]:
        """Parts that only a router of this kind has."""
        return {"upstreams": partial(self._forward_upstreams, gateway)}

    def _members(self) -> Members | None:
        """The members of a fleet without Dynamo, for the admin API."""
        return None

    async def _save_state(self) -> None:
        """Write the files that keep state over a restart. A failure costs the file only."""
        try:
            if self._control is not None:
                self._control.save()
            if self._index is not None:
                await self._index.save()
        except Exception as error:
            log.error("state is not saved: %s: %s", type(error).__name__, error)

    @property
    def _can_dump(self) -> bool:
        """Whether the blocks of workers can be read through Dynamo, which needs a store."""
        return self.config.dynamo.bootstrap and not isinstance(self.source, FrontendSource)

    def _make_sync(self, gateway: Gateway) -> GatewaySync:
        async def read_blocks(endpoint: str, block_size: int) -> str:
            environment = dynamo_environment(self.source, self._environment)
            return await dump_blocks(
                self._python, endpoint, block_size, environment, _DUMP_TIMEOUT_S
            )

        async def restore_index(pool: tuple[str, str], publishers: list[int]) -> None:
            if self._index is not None:
                await asyncio.to_thread(self._index.restore, pool, publishers)

        actions = Actions(
            tokenizer_folder,
            self._served_models,
            read_blocks if self._can_dump else None,
            restore_index,
        )
        return GatewaySync(gateway, self.source, actions, self.config.dynamo.resync_interval_s)

    async def _served_models(self) -> set[str]:
        return await models_served_by_any(self.upstreams)

    async def _serves_all(self, url: str) -> bool:
        """Whether a started frontend lists every routed model, which takes it a moment."""
        wanted = set(self._sync.view.models) if self._sync else set[str]()
        return not wanted or wanted <= await models_served(url)

    async def _forward_upstreams(self, gateway: Gateway) -> None:
        """Give the gateway the addresses of the started frontends after each change.

        With no frontend left the old addresses stay: they refuse at once, and each refusal counts.
        """
        while True:
            await self._upstreams_changed.wait()
            self._upstreams_changed.clear()
            if urls := self.upstreams:
                gateway.set_upstreams(urls)

    async def _report_discovery(self, parts: Parts) -> None:
        """Log and report when discovery fails and when it answers again."""
        reported: str | None = None
        shown_s: float | None = None
        while True:
            await asyncio.sleep(_DISCOVERY_POLL_S)
            error, answered_s = self.source.last_error, self.source.answered_unix_s
            if error != reported or answered_s != shown_s:
                shown_s = answered_s
                parts.report("discovery_source", error, answered_s)
            if error != reported:
                reported = error
                if error:
                    log.warning("discovery: %s; the last view stays in force", error)
                else:
                    log.info("discovery answers again")

    async def _drain(self, gateway: Gateway) -> bool:
        timeout_s = self.drain_timeout_s
        log.info("stopping: draining for up to %g s (a second signal stops at once)", timeout_s)
        drained = asyncio.create_task(asyncio.to_thread(gateway.drain, timeout_s))
        cut_short = asyncio.create_task(self._cut_short.wait())
        await asyncio.wait({drained, cut_short}, return_when=asyncio.FIRST_COMPLETED)
        cut_short.cancel()
        if not drained.done():
            log.warning("a second signal: requests in flight are cut off")
            await asyncio.to_thread(gateway.drain, _NO_DRAIN_S)
            return False
        complete = drained.result()
        if not complete:
            log.warning("requests were still in flight after %g s; they are cut off", timeout_s)
        return complete


def run_server(config: Config, frontend_arguments: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT, and return the exit code of `wardrop dynamo`.

    Raises:
        ConfigError, StartError, SupervisorError, DynamoMissingError: As `Server` and its `run`.
    """

    async def run() -> int:
        return await Server(config, frontend_arguments, os.environ).run()

    return asyncio.run(run())
