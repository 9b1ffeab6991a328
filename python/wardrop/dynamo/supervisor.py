"""Starts stock `dynamo.frontend` processes on loopback ports and keeps them running.

A frontend that ends or stops answering is restarted, with growing pauses and a limit. All of them
end with this process, even when it is killed. A callback receives the addresses that answer after
each change.
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
from wardrop.dynamo.child_process import bound_to_parent
from wardrop.dynamo.ports import free_port

_RESTART_WINDOW_S = 600.0
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 10.0
_START_PROBE_INTERVAL_S = 0.05
_PROBE_INTERVAL_S = 5.0
_PROBE_TIMEOUT_S = 5.0
_MAX_MISSED_PROBES = 6
"""A frontend that misses so many probes in a row is killed.

Six probes take at least half a minute. A frontend under full load still answers `/live`.
"""
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
        restart_limit: Restarts of one frontend in ten minutes; one more is a `SupervisorError`.
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
        limit = self._launch.restart_limit
        try:
            while True:
                started_s = time.monotonic()
                code = await self._run_once()
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
        """Publish the address when the frontend is ready; kill it when it stops answering."""
        missed = 0
        timeout = aiohttp.ClientTimeout(total=_PROBE_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while True:
                try:
                    async with session.get(f"{url}/live") as answer:
                        await answer.read()
                    missed = 0
                    if self.url is None and await self._ready(url):
                        self._set_url(url)
                except (aiohttp.ClientError, TimeoutError, OSError):
                    missed += self.url is not None
                    if missed >= _MAX_MISSED_PROBES:
                        log.error("%s does not answer any more; killing it", self.name)
                        _signal_group(process, signal.SIGKILL)
                        return
                await asyncio.sleep(_PROBE_INTERVAL_S if self.url else _START_PROBE_INTERVAL_S)

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
            SupervisorError: One of the frontends ended too often.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for frontend in self.frontends:
                    group.create_task(frontend.run(), name=frontend.name)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _report(self) -> None:
        self._changed(self.urls)


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
