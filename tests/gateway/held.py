"""Engines that answer on demand, and clients that wait for their answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from tests.waiting import wait_until

PERMIT_TIMEOUT_S = 20


class Engines:
    """Answers on demand: each request's first token waits for a permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.arrived = threading.Semaphore(0)

    def __call__(self, seen: Any, conn: Any) -> bytes | None:
        self.arrived.release()
        if not self.permits.acquire(timeout=PERMIT_TIMEOUT_S):
            return None
        return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}"

    def finish(self, threads: Sequence[threading.Thread]) -> None:
        """Let as many requests answer as there are clients, and wait for these."""
        for _ in threads:
            self.permits.release()
        for thread in threads:
            thread.join()


def background(
    running: Any,
    count: int,
    answers: list[Any],
    headers: dict[str, str] | None = None,
    stream: bool = True,
) -> list[threading.Thread]:
    """Clients that ask at once, each with a thread; what they get is appended to `answers`.

    Without `stream` the first token is not reported: the prefill counts as over when it is expected
    to be, and the worker has room again.
    """

    def ask() -> None:
        answers.append(running.complete(list(range(64)), headers=headers, stream=stream))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def waits(running: Any, count: int) -> None:
    """Until so many requests wait in the queue."""
    wait_until(lambda: running.metric("queue_requests") == count)
