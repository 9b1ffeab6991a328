"""Closed-loop clients that stream completions, and what they saw."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import quantiles

import aiohttp

MODEL = "tiny"
GIVE_UP_S = 60.0


@dataclass
class Seen:
    """One request.

    Attributes:
        sent_s: Monotonic time of sending.
        ended_s: Monotonic time of the end; None while it runs.
        first_s: Monotonic time of the first text.
        silence_s: Longest time between two pieces of text, or from the last one to the end.
        whole: The stream ended with `[DONE]` and without an error.
        error: What ended it otherwise.
    """

    sent_s: float
    ended_s: float | None = None
    first_s: float | None = None
    silence_s: float = 0.0
    whole: bool = False
    error: str = ""


@dataclass
class Clients:
    """Clients that send one streamed completion after another.

    Args:
        urls: Addresses, taken in turn.
        count: Clients.
        prompt_tokens: Length of each prompt; prompts share nothing.
        max_tokens: Length of each answer.
        pause_s: Pause of a client between two requests.
    """

    urls: Sequence[str]
    count: int
    prompt_tokens: int = 96
    max_tokens: int = 200
    pause_s: float = 0.0
    seen: list[Seen] = field(default_factory=list)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _stopping: bool = False

    async def __aenter__(self) -> Clients:
        self._numbers = itertools.count()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self.count)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopping = True
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    def running(self) -> list[Seen]:
        """Requests that have text and no end."""
        return [one for one in self.seen if one.ended_s is None and one.first_s is not None]

    async def warm(self) -> None:
        """Wait until every client is in its second request or a later one."""
        deadline_s = time.monotonic() + GIVE_UP_S
        while sum(one.whole for one in self.seen) < self.count:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no answers: {[one.error for one in self.seen][-3:]}")
            await asyncio.sleep(0.02)

    async def under_way(self) -> list[Seen]:
        """Wait until all clients but two stream; the requests that run then.

        Raises:
            RuntimeError: Too few clients stream after a minute.
        """
        deadline_s = time.monotonic() + GIVE_UP_S
        while len(self.running()) < self.count - 2:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{len(self.running())} of {self.count} clients stream")
            await asyncio.sleep(0.01)
        return self.running()

    async def _client(self) -> None:
        while not self._stopping:
            await self._ask(next(self._numbers))
            if self.pause_s:
                await asyncio.sleep(self.pause_s)

    async def _ask(self, number: int) -> None:
        one = Seen(time.monotonic())
        self.seen.append(one)
        body = {
            "model": MODEL,
            "prompt": [300 + (number * 7919 + i * 31) % 7000 for i in range(self.prompt_tokens)],
            "max_tokens": self.max_tokens,
            "stream": True,
            "ignore_eos": True,
        }
        turns = [self.urls[(number + turn) % len(self.urls)] for turn in range(len(self.urls))]
        for url in turns:
            one.error = ""  # of the frontend before, which refused the connection
            try:
                async with (
                    asyncio.timeout(GIVE_UP_S),
                    self._session.post(f"{url}/v1/completions", json=body) as answer,
                ):
                    if answer.status != 200:
                        one.error = f"HTTP {answer.status}"
                        await answer.read()
                    else:
                        await self._follow(answer, one)
                break
            except aiohttp.ClientConnectorError as error:
                one.error = f"refused: {type(error).__name__}"
            except TimeoutError:
                one.error = f"gave up after {GIVE_UP_S:g} s"
                break
            except (aiohttp.ClientError, OSError) as error:
                one.error = type(error).__name__
                break
        one.ended_s = time.monotonic()
        if not one.whole:
            await asyncio.sleep(0.05)  # a client that is refused does not spin

    async def _follow(self, answer: aiohttp.ClientResponse, one: Seen) -> None:
        last_s: float | None = None
        try:
            async for line in answer.content:
                now_s = time.monotonic()
                if line.startswith(b"data: [DONE]"):
                    one.whole = not one.error
                elif line.startswith(b"event: error") or line.startswith(b'data: {"error"'):
                    one.error = one.error or "error event"
                elif line.startswith(b"data: "):
                    one.first_s = one.first_s or now_s
                    if last_s is not None:
                        one.silence_s = max(one.silence_s, now_s - last_s)
                    last_s = now_s
        finally:
            if last_s is not None:
                one.silence_s = max(one.silence_s, time.monotonic() - last_s)
        if not one.whole and not one.error:
            one.error = "no [DONE]"


@dataclass(frozen=True)
class Outcome:
    """What a fault cost.

    Attributes:
        hit: Streams that were running when the fault began.
        lost: Of `hit`, streams that did not end whole.
        sent_later: Requests sent after the fault began.
        failed_later: Of `sent_later`, requests that did not end whole.
        longest_silence_s: Longest silence inside a stream that was running or began later.
        ttft_p99_s: 99th percentile of the time to the first text, of requests sent later.
    """

    hit: int
    lost: int
    sent_later: int
    failed_later: int
    longest_silence_s: float
    ttft_p99_s: float


def outcome(hit: Sequence[Seen], seen: Sequence[Seen], fault_s: float) -> Outcome:
    """Judge all requests after the clients have stopped."""
    later = [one for one in seen if one.sent_s >= fault_s]
    waits = [one.first_s - one.sent_s for one in later if one.first_s is not None]
    return Outcome(
        hit=len(hit),
        lost=sum(not one.whole for one in hit),
        sent_later=len(later),
        failed_later=sum(not one.whole for one in later),
        longest_silence_s=max((one.silence_s for one in [*hit, *later]), default=0.0),
        ttft_p99_s=p99(waits),
    )


def p99(values: Sequence[float]) -> float:
    """99th percentile; the largest value where there are few."""
    if len(values) < 2:
        return max(values, default=0.0)
    return quantiles(values, n=100, method="inclusive")[98]
