"""Starts stock `dynamo.frontend` processes on loopback ports and keeps them running.

A frontend that ends or stops answering is restarted, with growing pauses. A frontend that is silent
for two seconds loses its place among the addresses. It gets it back with its next answer, and is
killed after half a minute. All frontends end with this process, even when it is killed. A callback
receives the addresses that answer after each change.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from wardrop.config import ConfigError
from wardrop.dynamo.backoff import Backoff
from wardrop.dynamo.child_process import bound_to_parent
from wardrop.dynamo.ports import free_port
from wardrop.dynamo.shortage import is_shortage

_RESTART_WINDOW_S = 600.0
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 10.0
_START_PROBE_INTERVAL_S = 0.05
_PROBE_INTERVAL_S = 0.5
_PROBE_TIMEOUT_S = 1.0
_SECOND_PROBE_TIMEOUT_S = 0.4
"""A missed probe is repeated at once. Silence is therefore known after 1.9 s at most."""
_KILL_AFTER_S = 30.0
"""A frontend that answers no probe for so long is killed."""
_MIN_MISSED_PROBES = 6
"""A frontend is killed after so many missed probes at least: this process may have slept itself."""
_STOP_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 64 << 10

_OWN_FLAGS = {
    "--http-port": "Wardrop chooses the ports of the frontends; use --http-port before `--`",
    "--http-host": "the frontends listen on the loopback only; use --http-host before `--`",
    "--router-mode": "use --frontend-mode kv|direct|round-robin before `--`",
    "--interactive": "a frontend behind Wardrop has no terminal",
    "-i": "a frontend behind Wardrop has no terminal",
    "--tls-cert-path": "Wardrop uses plain HTTP to its frontends on the loopback",
    "--tls-key-path": "Wardrop uses plain HTTP to its frontends on the loopback",
}

Ready = Callable[[str], Awaitable[bool]]
"""Whether the frontend at an address, which answers `/live`, can take requests."""

log = logging.getLogger("wardrop.frontend")


class SupervisorError(RuntimeError):
    """A frontend ended more often than the limit allows."""


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse flags for `dynamo.frontend` that Wardrop sets itself.

    Raises:
        ConfigError: The text names the flag and what to use instead.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in _OWN_FLAGS:
            raise ConfigError(f"got frontend flag {name}: {_OWN_FLAGS[name]}")


@dataclass(frozen=True)
class FrontendSpec:
    """The frontends to start.

    Attributes:
        count: Number of processes, at least 1.
        mode: `--router-mode` of each.
        arguments: Further flags of each.
        environment: All variables of each.
        restart_limit: Restarts of one frontend in ten minutes. One more is a `SupervisorError`
            while no frontend answers.
        python: Interpreter with Dynamo.
    """

    count: int
    mode: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    restart_limit: int
    python: str = sys.executable

    @property
    def command(self) -> list[str]:
        """Command line of one frontend, without its address."""
        return [self.python, "-m", "dynamo.frontend", "--router-mode", self.mode, *self.arguments]


@dataclass(frozen=True)
class Launch:
    """How one frontend is started and restarted; the fields are those of `FrontendSpec`."""

    command: Sequence[str]
    environment: Mapping[str, str]
    restart_limit: int


class FrontendProcess:
    """One frontend, which is started again whenever it ends.

    Args:
        name: Name in logs and errors.
        launch: Command, environment and limit of restarts.
        changed: Called when `url` changes.
        ready: Says whether a frontend that answers `/live` can take requests.
    """

    def __init__(
        self, name: str, launch: Launch, changed: Callable[[], None], ready: Ready
    ) -> None:
        self.name = name
        self.restarts = 0
        self.shortages = 0
        """Probes and starts that failed because this process or machine lacked a resource."""
        self.url: str | None = None
        """Base address while the frontend answers, else None."""
        self._launch = launch
        self._changed = changed
        self._ready = ready
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id; None before the first start."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Keep the frontend running until cancelled.

        Raises:
            SupervisorError: The frontend ended more often in ten minutes than the limit allows.
        """
        ended: deque[float] = deque()
        shortage = Backoff(_FIRST_BACKOFF_S, _MAX_BACKOFF_S)
        limit = self._launch.restart_limit
        try:
            while True:
                started_s = time.monotonic()
                try:
                    code = await self._run_once()
                except OSError as error:
                    # No process, descriptor or port is free, or the interpreter is not there now.
                    # The frontend itself did not fail, so the limit does not count the attempt.
                    self.shortages += 1
                    pause_s = shortage.next_s()
                    log.error("%s cannot start: %s; retry in %.2f s", self.name, error, pause_s)
                    await asyncio.sleep(pause_s)
                    continue
                shortage.reset()
                now_s = time.monotonic()
                ended.append(now_s)
                while ended and ended[0] < now_s - _RESTART_WINDOW_S:
                    ended.popleft()
                if len(ended) > limit:
                    raise SupervisorError(
                        f"{self.name} ended {len(ended)} times in {_RESTART_WINDOW_S:g} s (last "
                        f"code {code}), more than --dynamo-restart-limit; see its lines above"
                    )
                backoff_s = min(_FIRST_BACKOFF_S * 2 ** (len(ended) - 1), _MAX_BACKOFF_S)
                log.warning(
                    "%s ended with code %s after %.1f s; restart in %.2f s",
                    self.name,
                    code,
                    now_s - started_s,
                    backoff_s,
                )
                await asyncio.sleep(backoff_s)
                self.restarts += 1
        finally:
            await self._stop()

    async def _run_once(self) -> int:
        """Start the frontend once and return its exit code."""
        port = free_port()
        command = [*self._launch.command, "--http-host", "127.0.0.1", "--http-port", str(port)]
        self._process = process = await asyncio.create_subprocess_exec(
            *bound_to_parent(command),
            env=dict(self._launch.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_MAX_LINE_BYTES,
        )
        output = asyncio.create_task(self._log_output(process))
        health = asyncio.create_task(self._watch_health(process, f"http://127.0.0.1:{port}"))
        try:
            return await process.wait()
        finally:
            health.cancel()
            self._set_url(None)
            await asyncio.gather(health, return_exceptions=True)
            if process.returncode is not None:
                await asyncio.gather(output, return_exceptions=True)
            output.cancel()

    async def _log_output(self, process: asyncio.subprocess.Process) -> None:
        while process.stdout is not None:
            try:
                line = await process.stdout.readline()
            except ValueError:  # the reader drops a line that is longer than its limit
                continue
            if not line:
                return
            log.info("%s: %s", self.name, line.decode(errors="replace").rstrip())

    async def _watch_health(self, process: asyncio.subprocess.Process, url: str) -> None:
        """Publish the address while the frontend answers; kill a frontend that stays silent."""
        missed, silent_since_s = 0, time.monotonic()
        is_reachable = False
        async with aiohttp.ClientSession() as session:
            while True:
                timeout_s = _SECOND_PROBE_TIMEOUT_S if missed == 1 else _PROBE_TIMEOUT_S
                try:
                    await self._probe(session, url, timeout_s)
                except Exception as error:
                    if is_shortage(error):
                        # This process has no descriptor left: the frontend was not asked.
                        self.shortages += 1
                    elif is_reachable:
                        missed += 1
                        if missed == 1:
                            silent_since_s = time.monotonic()
                            continue
                        self._withdraw()
                        silent_s = time.monotonic() - silent_since_s
                        if silent_s >= _KILL_AFTER_S and missed >= _MIN_MISSED_PROBES:
                            log.error("%s does not answer any more; killing it", self.name)
                            _signal_group(process, signal.SIGKILL)
                            return
                else:
                    if missed > 1:
                        log.warning("%s answers again", self.name)
                    missed, is_reachable = 0, self.url is not None
                await asyncio.sleep(_PROBE_INTERVAL_S if is_reachable else _START_PROBE_INTERVAL_S)

    async def _probe(self, session: aiohttp.ClientSession, url: str, timeout_s: float) -> None:
        """Ask whether the frontend answers, and publish its address when it is ready.

        Raises:
            Exception: The frontend does not answer in time, or could not be asked.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with session.get(f"{url}/live", timeout=timeout) as answer:
            await answer.read()
        if self.url is None and await self._ready(url):
            self._set_url(url)

    def _withdraw(self) -> None:
        if self.url is not None:
            log.warning("%s is silent; requests go to other frontends", self.name)
            self._set_url(None)

    def _set_url(self, url: str | None) -> None:
        if url != self.url:
            self.url = url
            self._changed()

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        _signal_group(process, signal.SIGTERM)
        _signal_group(process, signal.SIGCONT)
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            _signal_group(process, signal.SIGKILL)
            await process.wait()


class Supervisor:
    """A number of equal frontends.

    Args:
        spec: The frontends to start.
        changed: Called with the addresses that answer, after each change.
        ready: Says whether a frontend that answers `/live` can take requests.

    Raises:
        ConfigError: `spec.arguments` has a flag that Wardrop sets itself.
    """

    def __init__(
        self, spec: FrontendSpec, changed: Callable[[list[str]], None], ready: Ready
    ) -> None:
        check_arguments(spec.arguments)
        self.restarted: Callable[[], None] = lambda: None
        """Called when a frontend has started again."""
        self._restarts = 0
        self._changed = changed
        launch = Launch(spec.command, spec.environment, spec.restart_limit)
        self.frontends = [
            FrontendProcess(f"frontend-{number}", launch, self._report, ready)
            for number in range(spec.count)
        ]

    @property
    def urls(self) -> list[str]:
        """Addresses of the frontends that answer now."""
        return [frontend.url for frontend in self.frontends if frontend.url is not None]

    async def run(self) -> None:
        """Keep all frontends running until cancelled.

        Raises:
            SupervisorError: One of the frontends ended too often, and no frontend answers.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for frontend in self.frontends:
                    group.create_task(self._keep(frontend), name=frontend.name)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    async def _keep(self, frontend: FrontendProcess) -> None:
        """Keep one frontend running: while others answer, its failures end nothing."""
        while True:
            try:
                await frontend.run()
            except SupervisorError as error:
                if not self.urls:
                    raise
                log.error("%s; it is tried again, the other frontends serve", error)
            except Exception as error:
                log.error("%s: %s: %s", frontend.name, type(error).__name__, error)
            await asyncio.sleep(_MAX_BACKOFF_S)

    def _report(self) -> None:
        restarts = sum(frontend.restarts for frontend in self.frontends)
        if restarts != self._restarts:
            self._restarts = restarts
            self.restarted()
        self._changed(self.urls)


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
