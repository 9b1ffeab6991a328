"""The servers that selectors find in a cluster, followed in a thread with an event loop of its own.

The picker's own loop looks at a file twice a second. This thread waits for the API server, which
may take long, and keeps the last known endpoints for that loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from wardrop.kubernetes.endpoints import EndpointFollowers
from wardrop.kubernetes.environment import own_namespace
from wardrop.kubernetes.reflector import Timing
from wardrop.kubernetes.selector import Endpoint
from wardrop.picker.file import KubernetesSpec

_LOOK_EVERY_S = 0.2


@dataclass(frozen=True)
class Found:
    """What is known at one moment.

    Attributes:
        endpoints: Endpoints of each selector.
        problems: One text per object that cannot be used.
        error: Why the API server cannot be asked now; None while it answers.
        answered_unix_s: Up to when the endpoints are known to be fresh.
    """

    endpoints: Mapping[KubernetesSpec, tuple[Endpoint, ...]]
    problems: tuple[str, ...] = ()
    error: str | None = None
    answered_unix_s: float | None = None


class Cluster:
    """Follows selectors in a thread.

    Args:
        environment: Variables of the process.
        timing: Deadlines and pauses.
    """

    def __init__(self, environment: Mapping[str, str], timing: Timing | None = None) -> None:
        self.found = Found({})
        """The newest knowledge; replaced as a whole."""
        self._environment = dict(environment)
        self._timing = timing
        self._selectors: tuple[KubernetesSpec, ...] = ()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def follow(self, selectors: tuple[KubernetesSpec, ...]) -> None:
        """Follow exactly these selectors. The thread starts with the first one."""
        self._selectors = selectors
        if selectors and self._thread is None:
            self._thread = threading.Thread(
                target=lambda: asyncio.run(self._run()), name="cluster", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(5.0)

    async def _run(self) -> None:
        changed = asyncio.Event()
        followers = EndpointFollowers(
            self._environment, own_namespace(self._environment), changed.set, self._timing
        )
        try:
            while not self._stop.is_set():
                followers.follow(self._selectors)
                self.found = Found(
                    followers.endpoints,
                    followers.problems,
                    followers.error,
                    followers.answered_unix_s,
                )
                changed.clear()
                try:
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await changed.wait()
                except TimeoutError:
                    continue
        finally:
            await followers.close()
