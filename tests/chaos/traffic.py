"""Open-loop clients: requests leave at their times whether earlier requests have ended or not."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from tests.chaos.oracle import Exchange

WORDS = ("river", "stone", "lamp", "orange", "quiet", "engine", "seven", "market", "winter")
ANSWER_TOKENS = (8, 60)
_GIVE_UP_S = 60.0


def client_body(number: int, model: str, seed: int) -> tuple[str, dict[str, Any]]:
    """Path and body of the request with this number; a pure function of number and seed."""
    dice = random.Random(f"{seed}/{number}")
    head = random.Random(f"{seed}/head/{dice.randrange(12)}")
    shared = " ".join(head.choices(WORDS, k=160))
    text = f"{shared} {' '.join(dice.choices(WORDS, k=dice.randrange(4, 40)))} {number} ünï 😀"
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": dice.randrange(*ANSWER_TOKENS),
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }
    if dice.random() < 0.5:
        return "/v1/completions", {**body, "prompt": text}
    turns = [{"role": "system", "content": shared}, {"role": "user", "content": text}]
    return "/v1/chat/completions", {**body, "messages": turns}


@dataclass
class _Watch:
    """What the client has seen of one answer so far."""

    first_s: float | None = None
    last_s: float | None = None
    silence_s: float = 0.0
    tokens: int | None = None
    done: bool = False
    error: str | None = None
    pending: bytes = b""

    def take(self, data: bytes) -> None:
        """Bytes of the answer, with the time at which they came."""
        now_s = time.monotonic()
        if self.last_s is not None:
            self.silence_s = max(self.silence_s, now_s - self.last_s)
        self.first_s = self.first_s or now_s
        self.last_s = now_s
        *lines, self.pending = (self.pending + data).split(b"\n")
        for line in lines:
            self._line(line.strip())

    def _line(self, line: bytes) -> None:
        if line == b"data: [DONE]":
            self.done = True
        elif line.startswith(b"event: error"):
            self.error = self.error or "error event"
        elif line.startswith(b"data: "):
            try:
                event = json.loads(line[6:])
            except ValueError:
                self.error = "an event that is no JSON"
                return
            if not isinstance(event, dict):
                return
            if "error" in event or event.get("object") == "error":
                self.error = str(event)[:200]
            usage = event.get("usage")
            if usage:
                self.tokens = int(usage["completion_tokens"])


@dataclass
class Traffic:
    """The stream of requests, and what became of each.

    Args:
        url: The router's public address.
        model: Name of the model.
        seed: Seed of the requests and of their times.
        rate: Requests a second.
    """

    url: str
    model: str
    seed: int
    rate: float
    exchanges: list[Exchange] = field(default_factory=list)
    longest_lag_s: float = 0.0
    sent: int = 0
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _stopping: bool = False

    async def run(self) -> None:
        """Send requests until `stop`; return when each has ended."""
        dice = random.Random(f"{self.seed}/times")
        beat = asyncio.create_task(self._watch_own_pace())
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=5)
        async with aiohttp.ClientSession(connector=connector) as session:
            due_s = time.monotonic()
            while not self._stopping:
                due_s += dice.expovariate(self.rate)
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                self.sent += 1
                task = asyncio.create_task(self._ask(session, self.sent))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            await asyncio.gather(*list(self._tasks))
        beat.cancel()

    def stop(self) -> None:
        """Send no further request."""
        self._stopping = True

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._tasks)

    async def _watch_own_pace(self) -> None:
        """Measure how late this process itself runs, which a client would take for silence."""
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(0.05)
            self.longest_lag_s = max(self.longest_lag_s, time.monotonic() - before_s - 0.05)

    async def _ask(self, session: aiohttp.ClientSession, number: int) -> None:
        path, body = client_body(number, self.model, self.seed)
        name = request_id(self.seed, number)
        watch, status, sent_s = _Watch(), 0, time.monotonic()
        # Every third client opens a connection of its own.
        headers = {"x-request-id": name, **({"connection": "close"} if number % 3 == 0 else {})}
        try:
            async with (
                asyncio.timeout(_GIVE_UP_S),
                session.post(self.url + path, json=body, headers=headers) as answer,
            ):
                status = answer.status
                text = b""
                async for data in answer.content.iter_any():
                    watch.take(data)
                    text = (text + data)[:2000]
                if status != 200:
                    watch.error = _error_text(text)
        except TimeoutError:
            pass  # no answer and no error: the oracle calls the request lost
        except aiohttp.ClientConnectorError as error:
            watch.error = f"connection refused: {error}"
        except (aiohttp.ClientError, OSError) as error:
            # A broken connection before any byte is an answer that a client may repeat; after the
            # first byte the client cannot know what it missed, and the request counts as lost.
            if watch.first_s is None:
                watch.error = f"connection closed: {type(error).__name__}"
        self.exchanges.append(
            Exchange(
                request_id=name,
                sent_s=sent_s,
                ended_s=time.monotonic(),
                status=status,
                asked_tokens=body["max_tokens"],
                got_tokens=watch.tokens,
                done=watch.done,
                error=watch.error,
                first_byte_s=watch.first_s,
                silence_s=watch.silence_s,
            )
        )


def request_id(seed: int, number: int) -> str:
    """Request id of a number."""
    return f"chaos-{seed}-{number}"


def _error_text(body: bytes) -> str | None:
    """The message of an error in OpenAI's form, or in the shorter form of Dynamo's frontend."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return None
    if not isinstance(parsed, dict):
        return None
    error = parsed.get("error")
    message = error.get("message") if isinstance(error, dict) else parsed.get("message", error)
    return str(message)[:200] if message else None
