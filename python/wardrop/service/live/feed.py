"""Messages of the live page: made once a second for all viewers, sent as server-sent events.

A message belongs to a topic and has a version. A viewer remembers the versions that it has sent and
sends only newer messages, so a slow viewer skips snapshots and holds no queue. The number of
viewers is bounded, and a viewer that does not read for 30 s is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import msgspec

from wardrop.control.door import Door
from wardrop.control.settings import OBJECTIVE, QUEUE
from wardrop.service.live.observation import DECODER
from wardrop.service.live.snapshot import Builder, Viewers

log = logging.getLogger("wardrop.control")

MAX_VIEWERS = 16
PERIOD_S = 1.0
AUDIT_RECORDS = 200
"""Records of the audit that a page shows."""
_WRITE_TIMEOUT_S = 30.0
_TOPICS = ("history", "settings", "audit", "shadows", "snapshot")
"""Topics in the order in which a new viewer gets them."""

Write = Callable[[bytes], Awaitable[None]]


class ObservedGateway(Protocol):
    """The methods of `wardrop._core.Gateway` that the live page calls."""

    def observation(self) -> str:
        """Facts of the page, as JSON."""
        ...

    def shadows(self) -> str | None:
        """Estimates of the shadows, as JSON; None without shadows."""
        ...


class TooManyViewersError(RuntimeError):
    """As many pages are open as may be.

    Args:
        max_viewers: Most pages at once.
    """

    def __init__(self, max_viewers: int) -> None:
        super().__init__(
            f"got one more page, expected at most {max_viewers} open pages; close another page"
        )


@dataclass
class _Message:
    """The last message of a topic. The version grows with each change."""

    content: bytes = b""
    version: int = 0


class LiveFeed:
    """Makes the messages of the live page and sends them to its viewers.

    Args:
        gateway: The gateway to observe.
        door: The audited door, for settings and audit.
        control: Returns the figures of the control plane by name.
        max_viewers: Most pages at once.
    """

    def __init__(
        self,
        gateway: ObservedGateway,
        door: Door,
        control: Callable[[], Mapping[str, float]],
        max_viewers: int = MAX_VIEWERS,
    ) -> None:
        self._gateway = gateway
        self._door = door
        self._control = control
        self.max_viewers = max_viewers
        self._builder = Builder()
        self._encoder = msgspec.json.Encoder()
        self._messages = {topic: _Message() for topic in _TOPICS}
        self._changed = asyncio.Condition()
        self._closed = False
        self.viewers = 0
        self.refused_viewers = 0
        self.cpu_s = 0.0
        """CPU time of all snapshots since the start, in seconds."""

    @property
    def is_full(self) -> bool:
        """Whether as many pages are open as may be."""
        return self.viewers >= self.max_viewers

    async def run(self) -> None:
        """Make the messages once a second, until cancelled. An error is logged once."""
        is_logged = False
        while True:
            try:
                await self.tick()
                is_logged = False
            except Exception as error:
                if not is_logged:
                    log.error(
                        "the live page has no snapshot: %r; the next second tries again", error
                    )
                is_logged = True
            await asyncio.sleep(PERIOD_S)

    async def tick(self) -> None:
        """Make the messages of this second and wake the viewers."""
        began_s = time.thread_time()
        observation = DECODER.decode(self._gateway.observation())
        snapshot = self._builder.build(
            observation, time.time(), self._control(), Viewers(self.viewers, self.refused_viewers)
        )
        self._put("snapshot", self._encoder.encode(snapshot))
        if self.viewers:
            self._put_details()
        self.cpu_s += time.thread_time() - began_s
        async with self._changed:
            self._changed.notify_all()

    async def serve(self, write: Write) -> None:
        """Send messages to one viewer until `write` fails or the task is cancelled.

        Args:
            write: Sends bytes to the viewer and waits while its buffer is full.

        Raises:
            TooManyViewersError: As many pages are open as may be.
            TimeoutError: The viewer did not read for 30 s.
        """
        with self._seat():
            history = self._encoder.encode(self._builder.history())
            self._put_details()
            await self._send(write, b"event: history\ndata: %b\n\n" % history)
            sent: dict[str, int] = dict.fromkeys(_TOPICS, 0)
            while not self._closed:
                newer = [t for t in _TOPICS if self._messages[t].version > sent[t]]
                for topic in newer:
                    message = self._messages[topic]
                    sent[topic] = message.version
                    await self._send(
                        write, b"event: %b\ndata: %b\n\n" % (topic.encode(), message.content)
                    )
                async with self._changed:
                    await self._changed.wait()

    async def close(self) -> None:
        """End every `serve`."""
        self._closed = True
        async with self._changed:
            self._changed.notify_all()

    @contextlib.contextmanager
    def _seat(self) -> Generator[None]:
        if self.is_full:
            self.refused_viewers += 1
            raise TooManyViewersError(self.max_viewers)
        self.viewers += 1
        try:
            yield
        finally:
            self.viewers -= 1

    async def _send(self, write: Write, message: bytes) -> None:
        await asyncio.wait_for(write(message), _WRITE_TIMEOUT_S)

    def _put(self, topic: str, content: bytes) -> None:
        message = self._messages[topic]
        if content != message.content:
            message.content = content
            message.version += 1

    def _put_details(self) -> None:
        """Settings, audit and shadows: a viewer gets them when they change."""
        records = [asdict(record) for record in self._door.records(AUDIT_RECORDS)]
        bounds = {name: {"unit": b.unit, "says": b.says} for name, b in (QUEUE | OBJECTIVE).items()}
        settings = {
            "settings": self._door.settings(),
            "bounds": bounds,
            "change_in_force": self._door.youngest_change,
        }
        self._put("settings", _encoded(settings))
        self._put("audit", _encoded(records))
        shadows = self._gateway.shadows()
        self._put("shadows", b"null" if shadows is None else shadows.encode())


def _encoded(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
