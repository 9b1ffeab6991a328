"""Traffic for a running gateway whose rate a test changes as it goes."""

from __future__ import annotations

import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from tests.live.client import stream
from tests.live.router import Router

HEAD_TOKENS = 4000


class Load:
    """An open loop at a rate that may be changed; prompts their own, or behind shared heads."""

    def __init__(self, router: Router, tokens: int, answer: int, heads: int = 0) -> None:
        self.router, self.tokens, self.answer, self.heads = router, tokens, answer, heads
        self.rate = 0.0
        self.ended = threading.Event()
        self.clients = ThreadPoolExecutor(256)
        self.number = 0
        self.answered = 0
        self.thread = threading.Thread(target=self._run)

    def __enter__(self) -> Load:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()
        self.clients.shutdown(cancel_futures=True)

    def prompt(self, number: int) -> list[int]:
        """Tokens of the request with this number."""
        own = [300 + (number * 7919 + i * 31) % 7000 for i in range(self.tokens)]
        if not self.heads:
            return own
        head = random.Random(number).randrange(self.heads)
        return [300 + (head * 101 + i * 13) % 7000 for i in range(HEAD_TOKENS)] + own

    def _run(self) -> None:
        due_s = time.monotonic()
        while not self.ended.is_set():
            if not self.rate:
                due_s = time.monotonic()
                time.sleep(0.02)
                continue
            due_s = max(due_s + 1 / self.rate, time.monotonic() - 0.5)
            time.sleep(max(0.0, due_s - time.monotonic()))
            self.number += 1
            self.clients.submit(self._ask, self.number)

    def _ask(self, number: int) -> None:
        body = {
            "model": self.router.fleet.spec.model_name,
            "prompt": self.prompt(number),
            "max_tokens": self.answer,
            "stream": True,
            "ignore_eos": True,
        }
        connection, lines = stream(self.router.url, "/v1/completions", body)
        for _ in lines:
            pass
        connection.close()
        self.answered += 1


class Mixed(Load):
    """Seven short prompts, then one thirty times as long; none shares anything."""

    def prompt(self, number: int) -> list[int]:
        """Tokens of the request with this number."""
        tokens = self.tokens if number % 8 else 30 * self.tokens
        return [300 + (number * 7919 + i * 31 + i * i) % 7000 for i in range(tokens)]
