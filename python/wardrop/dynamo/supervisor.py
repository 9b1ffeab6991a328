"""Stock `dynamo.frontend` children on loopback ports of our choosing.

Each is restarted when it ends or stops answering, with growing pauses and a limit, and dies with us
whatever happens to us. Who wants to know is told the addresses that answer now.
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

import aiohttp

from wardrop.dynamo.child import tethered
from wardrop.dynamo.ports import free_port

_RESTART_WINDOW_S = 600.0
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 10.0
_PROBE_INTERVAL_S = 5.0
_PROBE_TIMEOUT_S = 5.0
_PROBES_MISSED = 6
"""Half a minute without an answer is a hang; a frontend under full load still answers `/live`."""
_STOP_TIMEOUT_S = 5.0
_MAX_LINE_BYTES = 64 << 10

_OWN_FLAGS = {
    "--http-port": "the ports of the frontends are chosen by Wardrop; use --http-port before `--`",
    "--http-host": "the frontends listen on the loopback only; use --http-host before `--`",
    "--router-mode": "use --frontend-mode kv|direct|round-robin before `--`",
    "--interactive": "a frontend behind Wardrop has no terminal",
    "-i": "a frontend behind Wardrop has no terminal",
    "--tls-cert-path": "Wardrop speaks plain HTTP to its frontends on the loopback",
    "--tls-key-path": "Wardrop speaks plain HTTP to its frontends on the loopback",
}

Ready = Callable[[str], Awaitable[bool]]
"""Whether the frontend at an address, which is live, can take requests."""

log = logging.getLogger("wardrop.frontend")


class SupervisorError(RuntimeError):
    """A frontend can not be kept running, or was asked for with flags that are ours."""


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse frontend flags that Wardrop sets itself.

    Raises:
        SupervisorError: which flag, and what to use instead.
    """
    for argument in arguments:
        name = argument.partition("=")[0]
        if name in _OWN_FLAGS:
            raise SupervisorError(f"got frontend flag {name}: {_OWN_FLAGS[name]}")


class FrontendChild:
    """One frontend, started again and again."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        restart_limit: int,
        changed: Callable[[], None],
        ready: Ready,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.url: str | None = None
        """Base address while it answers, else None."""
        self._command = list(command)
        self._environment = dict(environment)
        self._restart_limit = restart_limit
        self._changed = changed
        self._ready = ready
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Keep it running until cancelled.

        Raises:
            SupervisorError: more restarts in ten minutes than the limit.
        """
        ended: deque[float] = deque()
        try:
            while True:
                started_s = time.monotonic()
                code = await self._run_once()
                now_s = time.monotonic()
                ended.append(now_s)
                while ended and ended[0] < now_s - _RESTART_WINDOW_S:
                    ended.popleft()
                if len(ended) > self._restart_limit:
                    raise SupervisorError(
                        f"{self.name} ended {len(ended)} times in {_RESTART_WINDOW_S:g} s (last "
                        f"code {code}), more than --dynamo-restart-limit; see its lines above"
                    )
                backoff_s = min(_FIRST_BACKOFF_S * 2 ** (len(ended) - 1), _MAX_BACKOFF_S)
                ran_s = now_s - started_s
                log.warning(
                    "%s ended with code %s after %.1f s; again in %.2f s",
                    self.name,
                    code,
                    ran_s,
                    backoff_s,
                )
                await asyncio.sleep(backoff_s)
                self.restarts += 1
        finally:
            await self._stop()

    async def _run_once(self) -> int:
        port = free_port()
        command = [*self._command, "--http-host", "127.0.0.1", "--http-port", str(port)]
        self._process = process = await asyncio.create_subprocess_exec(
            *tethered(command),
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            limit=_MAX_LINE_BYTES,
        )
        output = asyncio.create_task(self._pass_output_on(process))
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

    async def _pass_output_on(self, process: asyncio.subprocess.Process) -> None:
        while process.stdout is not None:
            try:
                line = await process.stdout.readline()
            except ValueError:  # a line longer than the limit: dropped by the reader
                continue
            if not line:
                return
            log.info("%s: %s", self.name, line.decode(errors="replace").rstrip())

    async def _watch_health(self, process: asyncio.subprocess.Process, url: str) -> None:
        """Publish the address once it is ready; kill the child when it stops answering."""
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
                    if missed >= _PROBES_MISSED:
                        log.error("%s answers no more; killing it", self.name)
                        _signal_group(process, signal.SIGKILL)
                        return
                await asyncio.sleep(_PROBE_INTERVAL_S if self.url else 0.05)

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
    """`count` frontends; `run` keeps them until cancelled."""

    def __init__(
        self,
        count: int,
        mode: str,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        restart_limit: int,
        changed: Callable[[list[str]], None],
        ready: Ready,
        python: str = sys.executable,
    ) -> None:
        check_arguments(arguments)
        command = [python, "-m", "dynamo.frontend", "--router-mode", mode, *arguments]
        self._changed = changed
        self.children = [
            FrontendChild(f"frontend-{n}", command, environment, restart_limit, self._tell, ready)
            for n in range(count)
        ]

    @property
    def urls(self) -> list[str]:
        """Addresses that answer now."""
        return [child.url for child in self.children if child.url is not None]

    async def run(self) -> None:
        """Keep all running until cancelled.

        Raises:
            SupervisorError: one of them can not be kept running.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for child in self.children:
                    group.create_task(child.run(), name=child.name)
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _tell(self) -> None:
        self._changed(self.urls)


def _signal_group(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
